"""A guardrail first and another adapter second: the second call says what to do, and changes nothing."""

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from peft_folders import query_lora
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import GuardrailError, attach_guardrail, guardrail_status


IDS = token_ids(8, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("order")
    guarded("llama").save_pretrained(root / "guard")
    torch.manual_seed(0)
    get_peft_model(base_model("llama"), query_lora(modules_to_save=["lm_head"])).save_pretrained(root / "lora")
    return root


def by_peft(folders):
    return PeftModel.from_pretrained(base_model("llama"), folders / "guard")


def by_us(folders):
    return attach_guardrail(base_model("llama"), folders / "guard")


def from_pretrained(model, folders):
    PeftModel.from_pretrained(model, folders / "lora")


def from_pretrained_named(model, folders):
    PeftModel.from_pretrained(model, folders / "lora", adapter_name="lora")


def fresh(model, folders):
    get_peft_model(model, query_lora(), adapter_name="lora")


def fresh_ia3(model, folders):
    get_peft_model(model, IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, on the way to the error
@pytest.mark.parametrize("second", [from_pretrained, from_pretrained_named, fresh, fresh_ia3])
@pytest.mark.parametrize("first", [by_peft, by_us])
def test_an_adapter_over_a_guardrail_is_refused_with_the_order_that_works(first, second, folders):
    model = first(folders).eval()
    before, names = logits_of(model, IDS), list(model.state_dict())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(GuardrailError, match=r"^adapter '(default|lora)': .*(LORA|IA3).*`attach_guardrail\(PeftModel"):
        second(model, folders)
    assert list(model.peft_config) == ["default"]
    assert model.peft_config["default"].num_features == 6
    assert list(model.state_dict()) == names
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert torch.equal(logits_of(model, IDS), before)
    assert guardrail_status(model).verdict == "guarded"
    with pytest.raises(GuardrailError, match=r"^adapter '(default|lora)': .*(LORA|IA3).*`attach_guardrail\(PeftModel"):
        second(model, folders)  # and again


def test_load_adapter_and_add_adapter_say_so_too(folders):
    model = by_us(folders).eval()
    before = logits_of(model, IDS)
    with pytest.raises(GuardrailError, match=r"^adapter '(default|lora)': .*(LORA|IA3).*`attach_guardrail\(PeftModel"):
        model.load_adapter(folders / "lora", "lora")
    with pytest.raises(GuardrailError, match=r"^adapter '(default|lora)': .*(LORA|IA3).*`attach_guardrail\(PeftModel"):
        model.add_adapter("lora", query_lora())
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits_of(model, IDS), before)


def test_the_order_that_is_named_works(folders):
    model = attach_guardrail(PeftModel.from_pretrained(base_model("llama"), folders / "lora"), folders / "guard").eval()
    with torch.no_grad():
        lora = PeftModel.from_pretrained(base_model("llama"), folders / "lora").eval()
    assert not torch.equal(logits_of(model, IDS), logits_of(lora, IDS))
    assert sorted(model.peft_config) == ["default", "guardrail"]
    assert guardrail_status(model).verdict == "guarded"
