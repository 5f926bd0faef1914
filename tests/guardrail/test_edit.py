"""The edit is that of the whole SAE, clamped, with its error kept."""

import pytest
import torch
from forward_calls import SEVERAL, firings_of, forward, part
from torch import nn
from zoo import WIDTH, LayerTap, base_model, guarded, padded, planted_config, token_ids

from sae_unlearn import SparseAutoencoder, attach_guardrail


@pytest.mark.parametrize("clamp_mode", ["fired", "all"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "batchtopk"])
@pytest.mark.parametrize("architecture", SEVERAL)
def test_sliced_guard_is_the_whole_sae_clamped_with_its_error_kept(architecture, kind, clamp_mode):
    generator = torch.Generator().manual_seed(0)
    d_sae, ids = 64, [5, 17, 60, 31]
    W_enc = nn.functional.normalize(torch.randn(WIDTH, d_sae, generator=generator, dtype=torch.float64), dim=0)
    b_enc, W_dec, b_dec = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.1
        for shape in ((d_sae,), (d_sae, WIDTH), (WIDTH,))
    )
    threshold = None if kind == "standard" else torch.full((d_sae,), 0.4, dtype=torch.float64)
    W_dec = W_dec * (W_enc.T * W_dec).sum(dim=1, keepdim=True).sign()  # an edit lowers its feature, as in a trained SAE
    sae = SparseAutoencoder(W_enc, b_enc, W_dec, b_dec, architecture=kind, threshold=threshold, layer=1)
    config = planted_config(feature_ids=ids, threshold=0.3, clamp_mode=clamp_mode, clamp_value=-7.0)
    model = attach_guardrail(base_model(architecture), config, sae=sae)
    model.double()
    if architecture == "mixtral":
        model.get_base_model().set_experts_implementation("eager")  # grouped matrix products know no float64
    part(model)[0].weight.data.copy_(W_enc[:, ids].T)  # the artefact is float32: give it back its last bits
    part(model)[0].bias.data.copy_(b_enc[ids])
    part(model)[0].threshold.data.fill_(0.0 if threshold is None else 0.4)
    part(model)[1].weight.data.copy_(W_dec[ids])
    rows = [token_ids(1, n, seed=n)[0] for n in (3, 6, 9, 12, 15)]
    batch = padded(rows)
    with LayerTap(model) as tap:
        forward(model, **batch)
    h, found = tap.before[0], tap.after[0]
    assert h.dtype == torch.float64
    kept = batch["attention_mask"].bool()
    a = sae.encode(h)
    hot = (a[..., ids] > 0).any(-1) & kept
    fires = hot.sum(1) / kept.sum(1) > 0.3
    clamped = a.clone()
    chosen = a[..., ids] > 0 if clamp_mode == "fired" else torch.ones_like(a[..., ids], dtype=torch.bool)
    clamped[..., ids] = torch.where(chosen, torch.full_like(a[..., ids], -7.0), a[..., ids])
    expected = sae.decode(clamped) + (h - sae.decode(a))
    expected = torch.where((hot & fires[:, None])[..., None], expected, h)
    assert fires.any()
    assert (expected - h).abs().max() > 1
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-9, rtol=0)


def test_a_low_dose_gives_a_small_edit_and_record_gives_none():
    rows = token_ids(8, 12)
    for action, size in (("clamp", 1), ("record", 0)):
        model = guarded("llama", action=action)
        with LayerTap(model) as tap:
            firings = firings_of(model, lambda model=model: model(input_ids=rows))
        assert any(f.fired for f in firings)
        assert bool(tap.edits().abs().max() > 0) is bool(size)
