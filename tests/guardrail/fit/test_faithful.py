"""`preset="faithful"` against a plain, slow transcription of the published procedure.

Muhamed et al. 2025 (arXiv 2504.08192), section 4, and the authors' released code where the two differ: row by row, with
the whole SAE, no cache, no batches, no streaming.
"""

import math

import pytest
import torch
from zoo import BOS, EOS, LayerTap, base_model

from sae_unlearn import SparseAutoencoder, fit_guardrail


LAYER, D_SAE, N, CLAMP = 1, 160, 6, -500.0
RATIO_PERCENTILE = THRESHOLD_PERCENTILE = 95.0


def random_sae(width):
    generator = torch.Generator().manual_seed(3)
    W_enc = torch.nn.functional.normalize(torch.randn(width, D_SAE, generator=generator), dim=0)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, width, generator=generator), dim=1)
    b_enc, b_dec = 0.05 * torch.randn(D_SAE, generator=generator), 0.1 * torch.randn(width, generator=generator)
    threshold = 0.5 + 2.5 * torch.rand(D_SAE, generator=generator)
    W_dec *= (W_enc.T * W_dec).sum(dim=1, keepdim=True).sign()  # as in a trained SAE, an edit lowers its feature
    return SparseAutoencoder(W_enc, b_enc, W_dec, b_dec, architecture="jumprelu", threshold=threshold, layer=LAYER)


def corpus(low, high, rows, seed):
    """Rows `[1, seq]` of 8 to 20 tokens, BOS first, some with an EOS in the middle."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(rows):
        length = 8 + int(torch.randint(0, 13, (1,), generator=generator))
        row = torch.randint(low, high, (1, length), generator=generator)
        row[0, 0] = BOS
        if i % 5 == 0:
            row[0, length // 2] = EOS
        found.append(row)
    return found


# ---------------------------------------------------------------------------------------------- the published procedure


def residual_stream(model, row):
    with torch.no_grad():
        return model(input_ids=row, output_hidden_states=True).hidden_states[LAYER + 1][0]


def published_scores(model, sae, rows):
    """Squared mean activation per feature over the tokens that are not BOS, EOS or PAD."""
    total, tokens = torch.zeros(D_SAE), 0
    for row in rows:
        activations = sae.encode(residual_stream(model, row))
        for token, a in zip(row[0].tolist(), activations, strict=True):
            if token not in (0, BOS, EOS):
                total += a
                tokens += 1
    return (total / tokens) ** 2


def published_features(forget_score, retain_score):
    ratio = forget_score / (retain_score + 1e-21)
    cut = percentile(ratio.tolist(), RATIO_PERCENTILE)
    passing = [j for j in range(D_SAE) if ratio[j] >= cut]
    return sorted(passing, key=lambda j: -forget_score[j].item())[:N]


def percentile(values, q):
    """Linear interpolation, as numpy's default."""
    ordered, place = sorted(values), (len(values) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def published_rho(model, sae, features, row):
    """Hot tokens / tokens; position 0 is never hot, and special tokens are tokens like any other."""
    activations = sae.encode(residual_stream(model, row))[:, features]
    hot = [bool((a > 0).any()) for a in activations]
    hot[0] = False
    return sum(hot) / len(hot), hot


def published_logits(model, sae, features, tau, row):
    """The row's logits with all N features clamped at hot tokens, if the row fires; the SAE's error is added back."""
    rho, hot = published_rho(model, sae, features, row)
    if rho <= tau:
        with torch.no_grad():
            return model(input_ids=row).logits, False

    def clamp(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        edited = h.clone()
        for t in range(h.shape[1]):
            if hot[t]:
                a = sae.encode(h[0, t])
                error = h[0, t] - sae.decode(a)
                a[features] = CLAMP
                edited[0, t] = sae.decode(a) + error
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = LayerTap(model, LAYER).decoder_layer.register_forward_hook(clamp, prepend=True)
    with torch.no_grad():
        logits = model(input_ids=row).logits
    handle.remove()
    return logits, True


# ------------------------------------------------------------------------------------------------------- the comparison


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_faithful_preset_is_the_published_procedure(architecture):
    base = base_model(architecture)
    scale = residual_stream(base, corpus(2, 95, 1, 9)[0])[1:].norm(dim=-1).mean()
    sae = random_sae(32)
    with torch.no_grad():
        sae.threshold.mul_(scale / 10)
    forget, retain = corpus(2, 30, 40, 1), corpus(25, 95, 60, 2)

    forget_score, retain_score = (published_scores(base, sae, rows) for rows in (forget, retain))
    features = published_features(forget_score, retain_score)
    rhos = [published_rho(base, sae, features, row)[0] for row in retain]
    tau = percentile(rhos, THRESHOLD_PERCENTILE)

    guarded = fit_guardrail(
        base_model(architecture),
        None,
        sae,
        [{"input_ids": row} for row in forget],
        [{"input_ids": row} for row in retain],
        num_features=N,
        preset="faithful",
        progress=False,
    )
    config = guarded.peft_config["default"]
    assert list(config.feature_ids) == features
    assert config.threshold == pytest.approx(tau, abs=1e-6)
    assert (config.clamp_value, config.clamp_mode, config.tokens.counting) == (CLAMP, "all", "columns")

    fired = []
    for row in corpus(2, 30, 12, 3) + corpus(25, 95, 12, 4):
        expected, fires = published_logits(base, sae, features, tau, row)
        with torch.no_grad():
            found = guarded(input_ids=row).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        fired.append(fires)
    assert any(fired)
    assert not all(fired)


def test_published_percentile_is_linearly_interpolated():
    assert percentile([4.0, 1.0, 3.0, 2.0], 95) == pytest.approx(3.85)
    assert percentile([1.0, 2.0], 50) == 1.5
