"""Sampling of several continuations of each of many prompts, with one reading of each prompt.

`generate(num_return_sequences=n)` reads every prompt n times and carries all samples until the last one is finished.
Here the cache of one reading is shared by the samples, and finished samples leave the batch.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase

from sae_unlearn.backbone.call_arguments import cache_name, cache_of, knows_length
from sae_unlearn.backbone.layers import base_model_of, input_device
from sae_unlearn.errors import AlignmentError


_ROWS_AT_ONCE = 64  # rows with probabilities in double precision in memory at once


@torch.no_grad()
def sample_continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    seeds: Sequence[int],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    finished: Callable[[int, str], bool],
) -> list[list[str]]:
    """Sample continuations of a batch of prompts.

    Tokens are drawn from the whole softmax(logits / temperature), whatever the model's generation config says, by
    inverting its cumulative distribution at uniform numbers that depend on the prompt's own seed. So a prompt's
    samples do not depend on the others in its batch, except by the rounding of the logits, which seldom changes a draw.

    Args:
        model (nn.Module): Any causal language model in eval mode. Adapters stay as they are.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        rows (sequence of list of int): Token ids of the prompts.
        seeds (sequence of int): One per prompt.
        samples (int): Continuations per prompt.
        temperature (float): 0 takes the most probable token.
        max_new_tokens (int): Largest number of tokens of a continuation.
        finished (callable): Called with a prompt's index and a continuation so far. True ends the continuation.

    Returns:
        list of list of str: The continuations of each prompt, without special tokens.

    Raises:
        AlignmentError: If the logits are not finite.
    """
    draws = torch.stack([_uniform(seed, samples, max_new_tokens) for seed in seeds]).flatten(0, 1)
    eos = _end_tokens(model, tokenizer)
    written: list[list[int]] = [[] for _ in range(len(rows) * samples)]
    texts = [""] * len(written)
    reader = _Reader(model, rows)
    logits = reader.first()
    live = torch.arange(len(written))  # index of the continuation in each row of the batch
    place = live // samples  # row of `logits` from which each is drawn
    for step in range(max_new_tokens):
        tokens = _draw(logits, place, draws[live, step], temperature)
        for i, token in zip(live.tolist(), tokens.tolist(), strict=True):
            written[i].append(token)
        decoded = tokenizer.batch_decode([written[i] for i in live.tolist()], skip_special_tokens=True)
        kept = []
        for k, (i, token, text) in enumerate(zip(live.tolist(), tokens.tolist(), decoded, strict=True)):
            texts[i] = text.rstrip("\ufffd")  # an incomplete character
            if token not in eos and not finished(i // samples, texts[i]):
                kept.append(k)
        if not kept or step + 1 == max_new_tokens:
            break
        index = torch.tensor(kept)
        live = live[index]
        logits = reader.next(place[index], tokens[index])
        place = torch.arange(len(live))
    return [texts[i * samples : (i + 1) * samples] for i in range(len(rows))]


class _Reader:
    """Runs the model over rows that grow token by token, are repeated, and leave.

    It uses a key-value cache if the model has one that can be reordered, and otherwise reads the whole rows every time.
    """

    def __init__(self, model: nn.Module, rows: Sequence[list[int]]) -> None:
        self._model = model
        self._accepted = inspect.signature(base_model_of(model).forward).parameters
        # virtual tokens (prompt tuning) would precede every later token
        prompt_learning = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self._cache_name = None if prompt_learning else cache_name(base_model_of(model))
        self._cache: Cache | None = None
        self._device = input_device(model)
        width = max(len(row) for row in rows)
        self._ids = torch.zeros(len(rows), width, dtype=torch.long)  # left-padded; the mask hides the padding
        self._mask = torch.zeros_like(self._ids)
        for i, row in enumerate(rows):
            self._ids[i, width - len(row) :] = torch.tensor(row)
            self._mask[i, width - len(row) :] = 1

    def first(self) -> Tensor:
        """Return the logits `[batch, vocabulary]` after the rows as they are."""
        return self._run(self._ids.shape[1])

    def next(self, index: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits after the rows `index` of the last batch, each with one more token."""
        self._ids = torch.cat([self._ids[index], tokens[:, None]], dim=1)
        self._mask = torch.cat([self._mask[index], torch.ones_like(tokens[:, None])], dim=1)
        if self._cache is not None:
            self._cache.reorder_cache(index.to(self._device))
            return self._run(1)
        return self._run(self._ids.shape[1])

    def _run(self, last: int) -> Tensor:
        """Run the last tokens of every row. Those before are in the cache."""
        given = {
            "position_ids": (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -last:].to(self._device),
            "use_cache": self._cache_name is not None,
            "logits_to_keep": 1,
        }
        if self._cache_name is not None:
            given[self._cache_name] = self._cache
        given = {name: value for name, value in given.items() if name in self._accepted and value is not None}
        ids, mask = self._ids[:, -last:].to(self._device), self._mask.to(self._device)
        out = self._model(input_ids=ids, attention_mask=mask, **given)
        cache = None if self._cache_name is None else cache_of(out)
        # a recurrent model's cache does not record which columns of a mask it covers
        self._cache = cache if cache is not None and knows_length(cache) else None
        return out.logits[:, -1]


def _draw(logits: Tensor, place: Tensor, draws: Tensor, temperature: float) -> Tensor:
    """Tokens `[rows]` on the CPU, each drawn from the row `place` of `logits` at a uniform number."""
    drawn = torch.empty(len(place), dtype=torch.long)
    # MPS has no doubles; a sum over the vocabulary in single precision has an error of about 1e-5
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        part = logits[start : start + _ROWS_AT_ONCE].float()
        if not bool(torch.isfinite(part.logsumexp(dim=-1)).all()):
            raise AlignmentError(
                f"logits: expected finite values, got others in {logits.dtype}. "
                "Check the weights; float16 overflows in some "
                "models, bfloat16 does not."
            )
        of_part = ((place >= start) & (place < start + len(part))).nonzero()[:, 0]
        local = (place[of_part] - start).to(part.device)
        if temperature == 0:
            drawn[of_part] = part.argmax(dim=-1)[local].cpu()
            continue
        cumulative = (part / temperature).softmax(dim=-1).to(exact).cumsum(dim=-1)
        counts = torch.bincount(local, minlength=len(part))
        wide = int(counts.max())  # draws of each row side by side, which avoids copies of its sums
        column = torch.arange(len(local), device=part.device) - (counts.cumsum(0) - counts)[local]
        wanted = torch.zeros(len(part), wide, dtype=exact, device=part.device)
        wanted[local, column] = draws[of_part].to(part.device, exact)
        found = torch.searchsorted(cumulative, wanted * cumulative[:, -1:], right=True)
        drawn[of_part] = found[local, column].clamp(max=part.shape[-1] - 1).cpu()
    return drawn


def _uniform(seed: int, samples: int, tokens: int) -> Tensor:
    return torch.rand(samples, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return found
