"""From texts to rows of token ids of one length."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.errors import UnlearnError


def texts_in(corpus: Iterable[Any], column: str = "text") -> list[str]:
    """The texts of a corpus: a list of texts, or rows with a text column; empty ones are left out.

    Raises:
        UnlearnError: If a row is not a text, or there are fewer than two.
    """
    found = []
    for number, row in enumerate(corpus):
        text = row.get(column) if isinstance(row, Mapping) else row
        if not isinstance(text, str):
            raise UnlearnError(f"texts[{number}]: expected a text, got {type(text).__name__}. Pass texts.")
        if text.strip():
            found.append(text)
    if len(found) < 2:
        raise UnlearnError(f"texts: expected at least 2 texts, got {len(found)}. Pass more.")
    return found


def split(texts: list[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """Texts to train on and texts to measure on, each in a shuffled order; at least one of both."""
    shuffled = random.Random(seed).sample(texts, len(texts))
    aside = min(len(texts) - 1, max(1, round(held_out * len(texts))))
    return shuffled[aside:], shuffled[:aside]


def rows_of_texts(tokenizer: Any, texts: Iterable[str], length: int, max_tokens: int | None = None) -> Tensor:
    """Texts end to end, a blank line between them, cut into rows `[n, length]`.

    Every row begins with the tokens that the tokenizer puts before a text, such as BOS.

    Args:
        tokenizer (Any): Of the model.
        texts (Iterable[str]): In the order in which they are read.
        length (int): Tokens of a row.
        max_tokens (int, *optional*): Tokens of text at most; all without it.
    """
    begin = [i for i in tokenizer("a").input_ids if i in {*tokenizer.all_special_ids}][:1]
    width, wanted = length - len(begin), float("inf") if max_tokens is None else max_tokens
    between = tokenizer("\n\n", add_special_tokens=False).input_ids
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False).input_ids + between
        if len(ids) >= wanted:
            break
    count = int(min(len(ids), wanted)) // width
    rows = torch.tensor(ids[: count * width], dtype=torch.long).view(count, width)
    return torch.cat([torch.tensor(begin, dtype=torch.long).expand(count, -1), rows], dim=1)
