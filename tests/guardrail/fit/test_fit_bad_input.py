"""Bad input to a fit: errors that say what to mend, and a model left untouched."""

import pytest
import torch
from datasets import Dataset
from fitting import FORGET, RETAIN, fit, random_sae
from peft import get_peft_model
from zoo import BOS, EOS, base_model, plant, planted_config

from sae_unlearn import GuardrailError
from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail import guard_layers


def nan_model():
    model = base_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    return model


def silent_sae():
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(1e6)
    return sae


def ever_active_sae():
    return random_sae(architecture="standard")


BAD = {
    "no forget": ({"forget": None}, r"features=None.*\['forget'\]"),
    "no retain": ({"retain": None}, r"\['retain'\]"),
    "features without retain": ({"retain": None, "features": [1]}, "threshold=None.*`retain`"),
    "dose without forget": ({"forget": None, "features": [1]}, "clamp_unit=.*`forget`"),
    "empty forget": ({"forget": []}, "forget: expected at least 8"),
    "empty retain": ({"retain": [" "]}, "retain: expected at least 32"),
    "few retain": ({"retain": RETAIN[:12]}, "retain: 3 of its 12 rows.*at least 32"),
    "a string": ({"forget": "all of it"}, "forget: .*got str"),
    "a number": ({"forget": 3}, "forget: .*got int"),
    "items that are no text": ({"forget": [1, 2]}, "forget: .*got a int"),
    "wrong column": ({"forget": Dataset.from_dict({"body": FORGET})}, r"'text'.*columns \['body'\]"),
    "text without tokenizer": ({"tokenizer": None}, "forget: .*tokenizer="),
    "wrong batch": ({"forget": [{"input_ids": torch.zeros(2, 3, 4).long()}]}, "input_ids"),
    "float batch": ({"forget": [{"input_ids": torch.zeros(2, 3)}]}, "whole numbers"),
    "only special tokens": ({"forget": [{"input_ids": [BOS, EOS]}] * 8}, "no content tokens"),
    "width": ({"sae": random_sae(width=40)}, "SAE has d_in=40, but LlamaForCausalLM has hidden size 32"),
    "layer": ({"layer": 2}, "layer=2, but the SAE reads the output of layer 1"),
    "layer unknown": ({"sae": random_sae(layer=None)}, "Pass `layer=`"),
    "layer too deep": ({"sae": random_sae(layer=4)}, "layer=4: "),
    "model not finite": ({"model": nan_model()}, "layer=1.*not finite"),
    "ids of another tokenizer": (
        {"forget": [{"input_ids": [BOS, 5, 97]}] * 8},
        "Row 0 has token id 97.*0 to 96",
    ),
    "negative ids": ({"forget": [{"input_ids": [BOS, 5, -100]}] * 8}, "Row 0 has token id -100"),
    "more tokens than learned positions": (
        {"model": base_model("gpt2"), "forget": [{"input_ids": [BOS] + [5, 6] * 64}] * 8},
        "Row 0 has 129 tokens.*max_length=128",
    ),
    "silent sae": ({"sae": silent_sae()}, "SAE is silent on .* forget text"),
    "features on all retain text": (
        {"sae": ever_active_sae(), "ratio_percentile": 0.0, "num_features": 200, "min_tokens": 1, "evidence": "any"},
        r"threshold=1.0.*more or other retain text, or fewer features",
    ),
    "threshold too high": ({"threshold": 1.0}, r"threshold=1.0 is outside \[0.0, 1.0\)"),
    "threshold negative": ({"threshold": -0.5}, "threshold=-0.5"),
    "threshold nan": ({"threshold": float("nan")}, "threshold=nan"),
    "dose of the wrong sign": ({"clamp_value": 500.0}, "500.0"),
    "scale of the wrong sign": ({"clamp_scale": -2.0}, "clamp_scale=-2.0"),
    "two doses": ({"clamp_value": -5.0, "clamp_scale": 2.0}, "clamp_value=-5.0, clamp_scale=2.0"),
    "unit": ({"clamp_unit": "metres"}, "clamp_unit='metres'"),
    "residual dose too small": ({"clamp_unit": "residual", "clamp_scale": 0.01}, "clamp_scale=0.01"),
    "silent feature": ({"features": [0], "sae": silent_sae(), "threshold": 0.5}, r"Features \[0\] are never active"),
    "percentile": ({"ratio_percentile": 101.0}, "ratio_percentile=101.0"),
    "threshold percentile": ({"threshold_percentile": -1.0}, "threshold_percentile=-1.0"),
    "margin": ({"margin": 1.0}, "margin=1.0"),
    "no features asked": ({"num_features": 0}, "num_features=0"),
    "batch size": ({"batch_size": 2.5}, "batch_size=2.5"),
    "max length": ({"max_length": 0}, "max_length=0"),
    "max length of bos": ({"max_length": 1}, "max_length=1"),
    "importance": ({"importance": "mean"}, "importance='mean'"),
    "preset": ({"preset": "best"}, "preset='best'"),
    "statistic": ({"statistic": "mean"}, "statistic='mean'"),
    "scope": ({"gate_scope": "row"}, "gate_scope='row'"),
    "action": ({"action": "refuse"}, "action='refuse'"),
    "feature twice": ({"features": [3, 3]}, r"feature_ids=\[3\]"),
    "no feature given": ({"features": []}, "non-empty"),
    "name": ({"adapter_name": "a.b"}, "adapter_name='a.b'"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name_and_the_model_left_untouched(wrong, message):
    model = wrong.get("model", base_model("llama"))
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(GuardrailError, match=message):
        fit(**{"model": model} | wrong)
    assert not guard_layers(model)
    assert before == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_a_feature_beyond_the_sae_is_refused():
    with pytest.raises(UnlearnError, match="9999"):
        fit(features=[9999])


def test_a_topk_sae_is_refused():
    sae = random_sae(architecture="topk", k=4)
    with pytest.raises(UnlearnError, match="topk SAE"):
        fit(sae=sae)


def test_a_name_that_is_taken_is_refused(usual):
    model = get_peft_model(base_model("llama"), planted_config())
    plant(model)
    with pytest.raises(GuardrailError, match="adapter_name='default'"):
        fit(model, adapter_name="default")
