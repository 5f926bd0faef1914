"""Output projections are found in every decoder that a guardrail takes, or the model is refused by name."""

import pytest
import torch
from zoo import ZOO, base_model, token_ids

from sae_unlearn.alignment import AlignmentError
from sae_unlearn.alignment.closed_form.projections import Change, find_projections, tapped
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.residual_stream import residual_batches


WITHOUT_MLP = {"mamba"}
OF_EXPERTS = {"mixtral", "gpt_oss", "qwen3_next"}
WITH_NORM = {"gemma2", "gemma3"}
ROW = token_ids(1, 9)[0].tolist()


@pytest.mark.parametrize("name", sorted(set(ZOO) - WITHOUT_MLP - OF_EXPERTS))
def test_a_change_of_the_output_moves_the_residual_stream_as_written_says(name):
    model = base_model(name)
    (site,) = find_projections(model, [1], ROW)
    assert (site.gain is not None) == (name in WITH_NORM)
    with tapped([site]) as taps:
        before = next(residual_batches(model, [ROW], 1, 1)).residual
        k, m = taps.read(1, before)
        taps.changes[1] = [Change(torch.randn(2, m.shape[-1]) * m.std(), torch.randn(2, k.shape[-1]) / k.shape[-1])]
        after = next(residual_batches(model, [ROW], 1, 1)).residual
        moved = site.written(taps.read(1, after)[1]) - site.written(m)
    assert torch.allclose(after - before, moved, atol=1e-4 * float(before.abs().max()))
    assert float(moved.norm()) > 0


def test_a_change_equals_a_change_of_the_weight():
    model = base_model("llama")
    (site,) = find_projections(model, [2], ROW)
    change = Change(torch.randn(3, 32) * 0.1, torch.randn(3, 48))
    ids = torch.tensor([ROW])
    with tapped([site], {2: [change]}):
        by_hook = model(input_ids=ids).logits
    with torch.no_grad():
        site.module.weight += change.moves.T @ change.reads
    assert torch.allclose(model(input_ids=ids).logits, by_hook, atol=1e-5)


@pytest.mark.parametrize("name", sorted(OF_EXPERTS))
def test_a_mixture_of_experts_is_refused_by_name(name):
    kind = type(find_decoder_layers(base_model(name)).layers[1]).__name__
    with pytest.raises(AlignmentError, match=f"^init=.*experts .*{kind}"):
        find_projections(base_model(name), [1], ROW)


def test_a_model_without_an_mlp_is_refused_by_name():
    with pytest.raises(AlignmentError, match=r"^init=.*MambaBlock, got none"):
        find_projections(base_model("mamba"), [1], ROW)


def test_an_mlp_whose_output_is_used_in_another_way_is_refused():
    model = base_model("llama")
    layer = find_decoder_layers(model).layers[1]
    layer.mlp.register_forward_hook(lambda module, args, output: torch.tanh(3 * output / output.std()))
    with pytest.raises(AlignmentError, match=r"^init=.*LlamaDecoderLayer.*down_proj"):
        find_projections(model, [1], ROW)


def test_a_multiplier_after_the_mlp_is_measured():
    model = base_model("llama")
    find_decoder_layers(model).layers[1].mlp.register_forward_hook(lambda module, args, output: 0.3 * output)
    (site,) = find_projections(model, [1], ROW)
    assert site.scale == pytest.approx(0.3, rel=1e-3)
