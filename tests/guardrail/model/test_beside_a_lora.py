"""A guardrail and a LoRA on one model, in either order: both work, and the LoRA learns."""

import json

import pytest
import torch
from peft import PeftModel, PeftModelForCausalLM, get_peft_model
from peft_folders import IDS, loaded, logits, lora_config
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from upstream import adapters_of_transformers
from zoo import base_model, guarded, planted_config, token_ids

from sae_unlearn import GuardrailError, attach_guardrail, detach_guardrail, record_firings
from sae_unlearn.guardrail import guard_layers


def on_a_peft_lora(root):
    return attach_guardrail(
        PeftModel.from_pretrained(base_model("llama"), root / "lora"), root / "guard", check_base=False
    )


def on_a_trainable_lora(root):
    lora = PeftModel.from_pretrained(base_model("llama"), root / "lora", is_trainable=True)
    return attach_guardrail(lora, root / "guard", check_base=False)


def native_lora_first(root):
    model = base_model("llama")
    model.load_adapter(str(root / "lora"), adapter_name="lora")
    model.load_adapter(str(root / "guard"), adapter_name="guard")
    model.set_adapter(["lora", "guard"])
    return model


def native_guard_first(root):
    model = base_model("llama")
    model.load_adapter(str(root / "guard"), adapter_name="guard")
    model.load_adapter(str(root / "lora"), adapter_name="lora")
    model.set_adapter(["lora", "guard"])
    return model


NATIVE = [pytest.param(build, marks=adapters_of_transformers) for build in (native_lora_first, native_guard_first)]
BESIDE = [on_a_peft_lora, on_a_trainable_lora, *NATIVE]


@pytest.mark.parametrize("build", BESIDE)
def test_a_lora_and_a_guardrail_both_work_in_either_order(build, folders, plain):
    model = build(folders["root"])
    both = loaded(model)
    with record_firings(model) as firings:
        logits(model)
    fired = torch.tensor([f.fired for f in firings])
    assert fired.any()
    assert not fired.all()
    # quiet rows are the LoRA's bit for bit, fired rows are neither one's alone
    assert torch.equal(both[~fired], folders["lora"][~fired])
    assert (both - folders["lora"])[fired].abs().amax(dim=(1, 2)).min() > 0
    assert not torch.allclose(both, folders["guard"])
    lora_in = AutoModelForCausalLM.from_pretrained(folders["root"] / "base")
    merged = PeftModel.from_pretrained(lora_in, folders["root"] / "lora").merge_and_unload()
    alone = attach_guardrail(merged, folders["root"] / "guard", check_base=False)
    torch.testing.assert_close(both, loaded(alone), atol=1e-4, rtol=1e-4)


def test_a_lora_saved_beside_a_guardrail_holds_no_guard_tensors(folders, tmp_path):
    model = on_a_peft_lora(folders["root"])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        keys = list(file.keys())
    assert keys
    assert all("lora_" in key for key in keys)
    assert torch.equal(loaded(PeftModel.from_pretrained(base_model("llama"), tmp_path)), folders["lora"])
    guard = next(p for p in tmp_path.rglob("adapter_config.json") if json.loads(p.read_text())["peft_type"] != "LORA")
    with safe_open(guard.parent / "adapter_model.safetensors", framework="pt") as file:
        assert all("sae_guardrail" in key for key in file.keys())  # noqa: SIM118


def test_a_lora_stays_trainable_beside_a_firing_guardrail_and_learns_through_it(folders):
    model = on_a_trainable_lora(folders["root"])
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with record_firings(model) as firings:
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert any(f.fired for f in firings)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.abs().max() > 0 for name, g in gradients.items() if "layers.0." in name)  # below the guard
    unguarded = PeftModel.from_pretrained(base_model("llama"), folders["root"] / "lora", is_trainable=True)
    unguarded(input_ids=IDS, labels=IDS).loss.backward()
    other = {name: p.grad for name, p in unguarded.named_parameters() if p.requires_grad}
    assert gradients.keys() == other.keys()
    assert not torch.allclose(gradients[min(other)], other[min(other)])
    assert all(p.grad is None for layer in guard_layers(model) for p in layer.parameters())


def test_switching_the_lora_leaves_the_guardrail_in_force(folders):
    model = on_a_peft_lora(folders["root"])
    model.add_adapter("other", lora_config())
    model.set_adapter("other")
    with record_firings(model) as firings:
        logits(model)
    assert len(firings) == len(IDS)


def test_detaching_from_a_lora_gives_back_the_lora(folders):
    model = detach_guardrail(on_a_peft_lora(folders["root"]))
    assert isinstance(model, PeftModelForCausalLM)
    assert list(model.peft_config) == ["default"]
    assert torch.equal(loaded(model), folders["lora"])


def test_merging_the_lora_keeps_the_guardrail(folders):
    model = on_a_peft_lora(folders["root"])
    before = loaded(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(detach_guardrail(merged)), folders["lora"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # in the latter the mask is not the second argument
def test_a_call_is_what_pefts_own_forward_makes_of_it(architecture):
    model, ids = guarded(architecture), token_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ways = [((ids,), {"attention_mask": mask}), ((ids, mask), {}), ((), {"input_ids": ids, "attention_mask": mask})]
    ways.append(((ids,), {"attention_mask": mask, "adapter_names": None}))
    with torch.no_grad():
        expected = PeftModelForCausalLM.forward(model, ids, mask).logits
        for args, kwargs in ways:
            torch.testing.assert_close(model(*args, **kwargs).logits, expected, atol=0, rtol=0)
        assert not torch.equal(base_model(architecture)(ids, attention_mask=mask).logits, expected)


def test_nesting_one_peft_model_in_another_is_refused(folders):
    lora = PeftModel.from_pretrained(base_model("llama"), folders["root"] / "lora")
    for nest in (
        lambda: PeftModel.from_pretrained(lora, folders["root"] / "guard", adapter_name="guard"),
        lambda: get_peft_model(lora, planted_config(), adapter_name="guard"),
    ):
        with pytest.raises(GuardrailError, match=r"^model: .*PeftModel"):
            nest()
        assert torch.equal(loaded(lora), folders["lora"])
