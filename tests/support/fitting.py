"""A fit of a tiny guardrail as the tests call it: its texts, its SAE, and what is looked at in its result."""

from functools import partial

import pytest
import torch
import zoo
from tiny_topic import tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn import fit_guardrail, record_firings
from sae_unlearn.guardrail import guard_layers


TOKENIZER = tiny_tokenizer()
FORGET, RETAIN = topic_texts("forget", 32, seed=1), topic_texts("retain", 48, seed=2)

random_sae = partial(zoo.random_sae, d_sae=240, seed=4, threshold=2.5)
SAE = random_sae()


def fit(model=None, forget=FORGET, retain=RETAIN, tokenizer=TOKENIZER, sae=SAE, **kwargs):
    """Fit with `statistic="ratio"` unless another is asked for: `windowed` has tests of its own."""
    settings = {"num_features": 5, "ratio_percentile": 90.0, "threshold_percentile": 90.0, "progress": False}
    settings |= {"statistic": "ratio"} | kwargs
    return fit_guardrail(base_model("llama") if model is None else model, tokenizer, sae, forget, retain, **settings)


def config_of(model, name="default"):
    return model.peft_config[name]


def tensors(model, name="default"):
    layer = next(x for x in guard_layers(model) if name in x.guard_config)
    _, *parts = layer.guardrail(name)
    return {key: p for part in parts for key, p in part.named_parameters()} | {"dec": parts[1].weight}


def same_fit(a, b, exact=True):
    left, right = config_of(a), config_of(b)
    assert left.feature_ids == right.feature_ids
    if exact:
        assert left.threshold == right.threshold
    else:
        assert left.threshold == pytest.approx(right.threshold, abs=1e-6)
    for name, tensor in tensors(a).items():
        torch.testing.assert_close(tensors(b)[name], tensor, **({"atol": 0, "rtol": 0} if exact else {}))


def token_rows(texts):
    return [TOKENIZER(text).input_ids for text in texts]


def as_token_rows(texts):
    return [{"input_ids": row} for row in token_rows(texts)]


def fires(model, texts):
    """What the guardrails on a model record of each text alone."""
    found = []
    for text in texts:
        with record_firings(model) as firings, torch.no_grad():
            model(**TOKENIZER(text, return_tensors="pt"))
        found.append(firings[0])
    return found
