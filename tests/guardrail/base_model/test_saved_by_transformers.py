"""A guarded model that transformers saves: a warning, the base alone, and no guardrail in the folder."""

import copy
import pickle
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_folders import query_lora
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import attach_guardrail, detach_guardrail, guardrail_status
from sae_unlearn.guardrail import guard_layers


IDS = token_ids(8, 12)


def merged(folder):
    model = get_peft_model(base_model("llama"), query_lora())
    return attach_guardrail(model, folder).eval().merge_and_unload()


def unwrapped(folder):
    return attach_guardrail(base_model("llama"), folder).eval().get_base_model()


def loaded_by_peft(folder):
    return PeftModel.from_pretrained(base_model("llama"), folder).eval().get_base_model()


def copied(folder):
    return copy.deepcopy(unwrapped(folder))


def pickled(folder):
    return pickle.loads(pickle.dumps(unwrapped(folder)))


@pytest.mark.parametrize("make", [merged, unwrapped, loaded_by_peft, copied, pickled])
def test_a_guarded_model_saved_by_transformers_warns_and_leaves_the_guardrail_out(make, folder, tmp_path):
    model = make(folder)
    assert guardrail_status(model).verdict == "guarded"
    before = logits_of(model, IDS)
    with pytest.warns(UserWarning, match="unguarded"):
        model.save_pretrained(tmp_path)
    assert not [key for file in tmp_path.glob("*.safetensors") for key in load_file(file) if "guard" in key]
    assert torch.equal(logits_of(model, IDS), before)
    assert len(guard_layers(model)) == 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again, IDS), logits_of(detach_guardrail(model), IDS))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_part_that_holds_the_guarded_layer_is_saved_as_the_whole_is(name, tmp_path):
    model = guarded(name).get_base_model()
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and guard_layers(part)]
    assert len(parts) >= 2
    for index, part in enumerate(parts):
        with pytest.warns(UserWarning, match="unguarded"):
            part.save_pretrained(tmp_path / str(index))
        files = list((tmp_path / str(index)).glob("*.safetensors"))
        assert files
        assert not [key for file in files for key in load_file(file) if "guard" in key]
    others = [part for part in model.modules() if isinstance(part, PreTrainedModel) and not guard_layers(part)]
    detach_guardrail(model)
    assert not [part for part in (*parts, *others) if "save_pretrained" in part.__dict__]


@pytest.mark.parametrize("make", [merged, unwrapped])
def test_without_its_guardrails_the_model_is_saved_as_ever(make, folder, tmp_path):
    model = detach_guardrail(make(folder))
    assert "save_pretrained" not in model.__dict__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)


def test_a_save_pretrained_of_the_models_own_is_called_and_given_back(folder, tmp_path):
    base, seen = base_model("llama"), []

    def own(*args, **kwargs):
        seen.append(args)

    base.save_pretrained = own
    model = attach_guardrail(base, folder)
    with pytest.warns(UserWarning, match="unguarded"):
        base.save_pretrained(tmp_path)
    assert seen == [(tmp_path,)]
    detach_guardrail(model)
    assert base.save_pretrained is own
