"""A base model is known again however it is cast or quantised, and a fine-tuned one is told from it."""

import json
import re
import shutil

import pytest
import torch
from fitting import fit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail, guardrail_status
from sae_unlearn.backbone.identity import compared_matrices, differences, fingerprint
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.evaluation.audit.attacks.rounding import round_weights
from sae_unlearn.guardrail.check.check import check_guardrail
from sae_unlearn.guardrail.summary import guardrail_facts


LAYER = 1
MODELS = ("llama", "gpt2", "mixtral", "mamba")
NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 1]


def matrices(model):
    """The matrices of all layers that a quantiser rounds and a LoRA changes."""
    for layer in find_decoder_layers(model).layers:
        yield from (p for p in layer.parameters() if p.ndim > 1 and p.shape[-1] >= 16)


@torch.no_grad()
def in_blocks(model, rounded, size=32):
    for matrix in matrices(model):
        block = matrix.reshape(-1, size if matrix.numel() % size == 0 else matrix.shape[-1])
        scale = block.abs().amax(dim=1, keepdim=True)
        matrix.copy_((rounded(block / scale) * scale).reshape(matrix.shape))


def nearest_nf4(values):
    levels = torch.tensor(NF4)
    return levels[(values[..., None] - levels).abs().argmin(dim=-1)]


ROUNDED = {
    "bfloat16": lambda model: model.bfloat16(),
    "float16": lambda model: model.half(),
    "8 bits a channel": lambda model: round_weights(model, 8),
    "4 bits a channel": lambda model: round_weights(model, 4),
    "8 bits in blocks": lambda model: in_blocks(model, lambda x: (x * 127).round() / 127),
    "6 bits in blocks": lambda model: in_blocks(model, lambda x: (x * 31).round() / 31),
    "4 bits in blocks": lambda model: in_blocks(model, lambda x: (x * 7).round() / 7),
    "4 bits of normal quantiles": lambda model: in_blocks(model, nearest_nf4),
}


@pytest.mark.parametrize("then", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recorded_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ROUNDED)
@pytest.mark.parametrize("name", MODELS)
def test_a_rounded_model_is_the_same(name, rounding, recorded_in, then):
    recorded, other = fingerprint(base_model(name).to(recorded_in), LAYER), base_model(name)
    ROUNDED[rounding](other)
    assert differences(recorded, other.to(then), LAYER) is None
    compared = compared_matrices(recorded, other, LAYER)
    assert compared.compared == compared.recorded >= 2


@torch.no_grad()
def add_low_rank(model, relative, chosen=lambda depth, name: True):
    """What a merged LoRA of rank 4 does, `relative` to each matrix's norm."""
    generator = torch.Generator().manual_seed(0)
    for depth, layer in enumerate(find_decoder_layers(model).layers):
        for name, matrix in layer.named_parameters():
            if matrix.ndim > 1 and chosen(depth, name):
                sizes = (*matrix.shape[:-1], 4), (4, matrix.shape[-1])
                delta = torch.randn(sizes[0], generator=generator) @ torch.randn(sizes[1], generator=generator)
                matrix.add_(delta * relative * matrix.norm() / delta.norm())


@pytest.mark.parametrize("then", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relative", [0.003, 0.01, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_merged_lora_is_another(name, relative, then):
    recorded, other = fingerprint(base_model(name), LAYER), base_model(name)
    add_low_rank(other, relative)
    assert re.search(r"of \d+ sampled matrices differ", differences(recorded, other.to(then), LAYER))


@pytest.mark.parametrize("then", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relative", [0.003, 0.01, 0.05])
@pytest.mark.parametrize("rounding", ["8 bits a channel", "4 bits in blocks", "4 bits of normal quantiles"])
def test_a_lora_merged_into_a_quantised_model_is_told(rounding, relative, then):
    """In bfloat16, too, where values that were on one level are often equal still."""
    other = base_model("llama")
    ROUNDED[rounding](other)
    recorded = fingerprint(other, LAYER)
    add_low_rank(other, relative)
    told = compared_matrices(recorded, other.to(then), LAYER)
    assert len(told.different) >= told.compared / 2


def test_a_large_change_is_told_behind_a_quantisation():
    """What is smaller than the levels' spacing is not: the docs say so."""
    recorded = fingerprint(base_model("llama"), LAYER)
    for relative, told in ((0.5, True), (0.01, False)):
        other = base_model("llama")
        add_low_rank(other, relative)
        round_weights(other, 4)
        assert (differences(recorded, other, LAYER) is not None) is told


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (lambda depth, name: "q_proj" in name, 2),
        (lambda depth, name: depth == LAYER and "down_proj" in name, 1),
        (lambda depth, name: depth > LAYER, 0),
    ],
)
def test_one_changed_matrix_suffices_up_to_the_guarded_layer(chosen, told):
    recorded, other = fingerprint(base_model("llama"), LAYER), base_model("llama")
    add_low_rank(other, 0.02, chosen)
    assert len(compared_matrices(recorded, other, LAYER).different) == told


def lora(model, targets="all-linear"):
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def test_an_adapter_beside_the_weights_changes_nothing_and_a_merged_one_does():
    recorded = fingerprint(base_model("llama"), LAYER)
    model = lora(base_model("llama"))
    assert fingerprint(model.get_base_model(), LAYER) == recorded
    model.merge_adapter()
    assert differences(recorded, model.get_base_model(), LAYER)
    model.unmerge_adapter()
    model.unload()
    saved = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["mlp"], task_type="CAUSAL_LM")
    assert fingerprint(get_peft_model(base_model("llama"), saved).get_base_model(), LAYER) == recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("guardrail")
    fit().save_pretrained(path)
    return path


@pytest.fixture
def earlier(folder, tmp_path):
    """The same, as an earlier version wrote it: without matrices, and without a seal to break."""
    shutil.copytree(folder, tmp_path / "earlier")
    path = tmp_path / "earlier" / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["base_model"]["fingerprint"]["matrices"]
    path.write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("_sha256")}))
    return path.parent


def base_finding(model, folder):
    return next(finding for finding in check_guardrail(model, folder).findings if finding.subject == "base model")


def test_a_guardrail_is_not_attached_to_a_tuned_base_without_a_word(folder):
    merged = lora(base_model("llama")).merge_and_unload()
    with pytest.raises(GuardrailError, match=r"\d+ of \d+ .*_proj"):
        attach_guardrail(merged, folder)
    with pytest.warns(UserWarning, match=r"\d+ of \d+ .*_proj"):
        PeftModel.from_pretrained(merged, folder)
    assert base_finding(merged, folder).status == "problem"
    merged = lora(base_model("llama")).merge_and_unload()
    with pytest.warns(UserWarning, match=r"\d+ of \d+ .*_proj"):
        attach_guardrail(merged, folder, check_base=False)


def test_what_an_earlier_version_wrote_loads_and_says_what_is_not_known(folder, earlier):
    model = base_model("llama")
    assert base_finding(model, folder).status == "ok"
    finding = base_finding(model, earlier)
    assert (finding.status, "has no matrices" in finding.sentence) == ("warning", True)
    for path, said in ((folder, False), (earlier, True)):
        guarded = attach_guardrail(base_model("llama"), path)
        status = guardrail_status(guarded)
        assert status.verdict == "guarded"
        assert ("has no matrices" in str(status)) is said
        facts = guardrail_facts(guarded.peft_config["default"], [-1.0])
        assert ("fingerprint without matrices" in facts["base model"]) is said


def test_matrices_that_cannot_be_read_are_said(folder):
    model = base_model("llama")
    layer = model.model.layers[0].mlp
    layer.up_proj.weight = nn.Parameter(layer.up_proj.weight.to(torch.float8_e4m3fn), requires_grad=False)
    layer.down_proj.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    recorded = json.loads((folder / "adapter_config.json").read_text())["base_model"]["fingerprint"]
    assert differences(recorded, model, LAYER) is None
    assert compared_matrices(recorded, model, LAYER) == (14, 12, [])


@pytest.mark.parametrize("lie", [[1.0], [1.0] * 7 + ["x"], "text", None, [10**400] * 8, [True] * 8])
def test_samples_that_are_none_differ(lie):
    model = base_model("llama")
    recorded = fingerprint(model, LAYER)
    recorded["matrices"]["0.mlp.up_proj.weight"] = lie
    assert "1 of 14 sampled matrices differ" in differences(recorded, model, LAYER)


@pytest.mark.parametrize("lie", [[1.0], "text", 3, None, {}])
def test_matrices_that_are_none_are_as_none(lie):
    model = base_model("llama")
    recorded = fingerprint(model, LAYER) | {"matrices": lie}
    assert differences(recorded, model, LAYER) is None
    assert compared_matrices(recorded, model, LAYER).recorded == 0
