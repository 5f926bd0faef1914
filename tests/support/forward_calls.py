"""Calls of a guarded model, and what they record."""

import torch

from sae_unlearn import record_firings
from sae_unlearn.guardrail import guard_layers


SEVERAL = ("llama", "gemma3", "gpt2", "mixtral", "falcon_h1")
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def firings_of(model, call):
    with record_firings(model) as firings, torch.no_grad():
        call()
    return list(firings)


def forward(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def part(model, adapter="default"):
    layer = next(x for x in guard_layers(model) if adapter in x.guard_config)
    return layer.guardrail(adapter)[1:]
