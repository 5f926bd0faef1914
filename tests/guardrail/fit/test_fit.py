"""Fitting: forward passes up to one layer, the same result each time, no trace on the model, none of the text kept."""

import copy
import json

import pytest
import torch
from fitting import FORGET, RETAIN, SAE, config_of, fit, same_fit, tensors, token_rows
from peft import LoraConfig, get_peft_model
from zoo import base_model, planted_config

from sae_unlearn import GuardrailError, attach_guardrail, detach_guardrail, fit_guardrail, record_firings
from sae_unlearn.backbone.layers import find_decoder_layers


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mixtral", "falcon_h1", "mamba"])
def test_only_layers_up_to_the_guarded_one_are_run_and_without_gradients(architecture):
    model, calls = base_model(architecture), {}
    place = find_decoder_layers(model)
    watched = {f"layer {i}": layer for i, layer in enumerate(place.layers)} | {"head": model.get_output_embeddings()}
    final = next(m for n, m in place.backbone.named_children() if n in ("norm", "ln_f", "final_layernorm", "norm_f"))
    for name, module in (watched | {"norm": final}).items():

        def note(module, args, name=name):
            calls[name] = calls.get(name, 0) + 1
            assert not torch.is_grad_enabled()
            assert not module.training

        module.register_forward_pre_hook(note)
    try:
        fit(model)
    except GuardrailError as error:  # a random SAE need not fit every model; what was run is what counts here
        assert "threshold" in str(error) or "active" in str(error)  # noqa: PT017
    assert set(calls) == {"layer 0", "layer 1"}
    assert calls["layer 0"] == calls["layer 1"] > 4


def state(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def assert_same_state(model, before):
    now = state(model)
    assert now[0].keys() == before[0].keys()
    assert all(torch.equal(now[0][name], tensor) for name, tensor in before[0].items())
    assert now[1:] == before[1:]
    assert not hasattr(model, "peft_config")


class Interrupted(Exception):
    pass


def breaking(after):
    yield from FORGET[:after]
    raise Interrupted


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"forget": lambda: breaking(40)}, Interrupted),
        ({"retain": lambda: breaking(20)}, Interrupted),
        ({"retain": lambda: RETAIN[:6]}, GuardrailError),
        ({"forget": lambda: [3, 4]}, GuardrailError),
    ],
    ids=["late in forget", "in retain", "too few", "not text"],
)
def test_an_error_leaves_the_model_as_it_was(broken, error, training):
    model = base_model("llama").train(training)
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    with pytest.raises(error):
        fit(model, batch_size=1, **{name: make() for name, make in broken.items()})
    assert_same_state(model, before)


def test_detached_after_fitting_the_model_is_as_it_was(usual):
    model = base_model("llama")
    model.model.layers[0].train()
    before = state(model)
    detach_guardrail(fit(model))
    assert_same_state(model, before)


def test_fitting_changes_nothing_the_caller_holds():
    forget, features = list(FORGET), [1, 2, 3]
    sae = copy.deepcopy(SAE)
    fit(forget=forget, features=features, sae=sae, threshold=0.5, clamp_value=-9.0)
    assert forget == FORGET
    assert features == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), SAE.parameters(), strict=True))


def test_fitting_is_deterministic(usual):
    torch.manual_seed(1234)
    same_fit(usual, fit())
    first, second = (json.dumps(config_of(m).to_dict(), sort_keys=True, default=list) for m in (usual, fit()))
    assert first == second


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_does_not_matter(batch_size, usual):
    same_fit(usual, fit(batch_size=batch_size), exact=False)


def test_a_guardrail_or_a_lora_on_the_model_joins_in_or_not():
    """A guardrail that is on the model is out of force while another is fitted; a LoRA is part of the model."""
    alone = fit()
    joined = attach_guardrail(base_model("llama"), planted_config(feature_ids=[1, 2], threshold=0.0,
                                                                  clamp_value=-50.0), sae=SAE)  # fmt: skip
    joined = fit(joined, adapter_name="new")
    assert config_of(joined, "new").feature_ids == config_of(alone).feature_ids
    assert config_of(joined, "new").threshold == config_of(alone).threshold
    with record_firings(joined) as firings, torch.no_grad():
        joined(input_ids=torch.tensor([token_rows(FORGET)[0]]))
    assert {f.adapter for f in firings} == {"default", "new"}
    lora = get_peft_model(
        base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["up_proj"])
    )
    other = fit(lora, adapter_name="new")
    assert tensors(other, "new")["clamp"].tolist() != tensors(alone)["clamp"].tolist()


def test_zero_shot_needs_neither_corpora_nor_tokenizer():
    model = fit_guardrail(
        base_model("llama"), None, SAE, features=[7, 3, 11], threshold=0.25, clamp_value=-4.0, progress=False
    )
    config = config_of(model)
    assert (config.feature_ids, config.threshold, config.clamp_value) == ((7, 3, 11), 0.25, -4.0)
    part = SAE.slice([7, 3, 11])
    found = tensors(model)
    assert torch.equal(found["dec"], part.W_dec)
    assert torch.equal(found["threshold"], part.threshold)
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=torch.tensor([token_rows(FORGET)[0]]))
    assert len(firings) == 1
    assert "fire_rate_forget" not in config.calibration


def test_action_record_never_edits():
    model = fit(action="record")
    ids = torch.tensor([row[:15] for row in token_rows(FORGET)])
    with torch.no_grad(), record_firings(model) as firings:
        found = model(input_ids=ids).logits
    assert any(f.fired for f in firings)
    with torch.no_grad():
        assert torch.equal(found, base_model("llama")(input_ids=ids).logits)


def test_a_probe_is_stored_only_when_asked(usual):
    assert not {"probe", "probe_statistics"} & {*config_of(usual).calibration}
    calibration = config_of(fit(store_probe=True)).calibration
    assert calibration["probe"] == {
        "forget": [token_rows(FORGET)[2], token_rows(FORGET)[6]],
        "retain": [token_rows(RETAIN)[3], token_rows(RETAIN)[7]],
    }
    for role, found in calibration["probe_statistics"].items():
        assert found == pytest.approx(calibration[f"statistic_{role}"][:2], abs=1e-5)


def test_nothing_of_the_text_is_in_the_folder(usual, tmp_path):
    usual.save_pretrained(tmp_path)
    written = "".join(p.read_text(errors="ignore") for p in tmp_path.iterdir() if p.suffix != ".safetensors")
    assert not any(text in written for text in FORGET + RETAIN)
    assert "w17" not in written
