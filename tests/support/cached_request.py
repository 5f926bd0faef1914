"""A batch of rows in one cache, pass by pass."""

import torch
from transformers import DynamicCache, StaticCache
from zoo import padded, token_ids, with_cache


GREEDY = {"max_new_tokens": 5, "do_sample": False}
ROWS = [token_ids(1, n, seed=n)[0] for n in (4, 9, 7)]
LENGTH = 64


class Request:
    """A batch of rows in one cache, pass by pass, as an engine of one's own would run it."""

    def __init__(self, model, rows=ROWS, kind="static", run=None):
        self.model, self.run = model, run or model
        batch = padded(rows)
        self.ids, self.mask = batch["input_ids"], batch["attention_mask"]
        config = model.config
        self.cache = (
            StaticCache(config=config, max_cache_len=LENGTH) if kind == "static" else DynamicCache(config=config)
        )
        self.done = 0

    @torch.no_grad()
    def read(self, tokens=None):
        """Logits of the next pass: the rest of the rows or `tokens` of it, and past their end a token more."""
        left = self.ids.shape[1] - self.done
        if left == 0:
            new = token_ids(len(self.ids), 1, seed=self.done)
            self.ids = torch.cat([self.ids, new], dim=1)
            self.mask = torch.cat([self.mask, torch.ones_like(new)], dim=1)
            left = 1
        end = self.done + (tokens or left)
        inputs = {"input_ids": self.ids[:, self.done : end], "attention_mask": self.mask[:, :end]}
        self.done = end
        return self.run(**inputs, **with_cache(self.model, self.cache), logits_to_keep=1).logits

    def unguarded(self, tokens=None):
        with self.model.disable_adapter():
            return self.read(tokens)
