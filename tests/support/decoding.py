"""A decoding step of a model, and what a guardrail adds to it."""

import torch
from transformers import DynamicCache, StaticCache
from zoo import base_model, guarded, token_ids, with_cache


class Decoding:
    """A model that has read a prompt: each `step` decodes one token more."""

    def __init__(self, model, kind: str = "dynamic", prompt: int = 8) -> None:
        self.model, self.ids, self.length = model, token_ids(2, prompt), prompt
        config = model.config
        self.cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=64)
        self.run(self.ids, prompt)

    def step(self) -> None:
        self.length += 1
        self.run(self.ids[:, -1:], self.length)

    @torch.no_grad()
    def run(self, ids, length):
        mask = torch.ones(2, length, dtype=torch.long)
        return self.model(input_ids=ids, attention_mask=mask, **with_cache(self.model, self.cache), logits_to_keep=1)


def added(count, kind: str, **fields):
    """By name, what a guarded model does in a decoding step beyond its base."""
    found = []
    for model in (guarded("llama", **fields), base_model("llama")):
        decoding = Decoding(model, kind)
        decoding.step()
        found.append(count(decoding.step))
    found[0].subtract(found[1])
    return {name: n for name, n in found[0].items() if n}
