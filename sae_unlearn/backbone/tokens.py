"""From what a user calls a corpus to rows of token ids."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import UnlearnError


class Document(NamedTuple):
    """One document of a corpus, as one or more rows of token ids (long documents are cut)."""

    rows: list[list[int]]


def read_corpus(
    corpus: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    max_length: int,
    chat_template: bool = False,
    text_column: str = "text",
) -> Iterator[Document]:
    """The documents of a corpus, one by one, as token ids with the tokenizer's own special tokens.

    Args:
        corpus: list or other iterable of strings; a `datasets.Dataset` (or any iterable of mappings) with a text
            column; or an iterable of batches with `input_ids` `[batch, seq]` and, if padded, `attention_mask`.
        tokenizer: needed where there is text.
        name: what to call the corpus in errors.
        max_length: documents of more tokens are cut into rows of at most this many, each with the leading special
            tokens of the first.
        chat_template: put each text as a user's turn into the tokenizer's chat template.
        text_column: name of the text column.

    Raises:
        UnlearnError: an item that is none of these.
    """
    if isinstance(corpus, (str, bytes)) or not isinstance(corpus, Iterable):
        raise UnlearnError(
            f"The {name} corpus is a {type(corpus).__name__}; pass a list of texts, a dataset with a "
            f"{text_column!r} column, or an iterable of batches."
        )
    for item in corpus:
        if isinstance(item, Mapping) and "input_ids" in item:
            yield from (Document([row]) for row in _rows_of_batch(item, name))
            continue
        text = item.get(text_column) if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            columns = f" with columns {sorted(item)}" if isinstance(item, Mapping) else ""
            raise UnlearnError(
                f"The {name} corpus holds a {type(item).__name__}{columns}; expected texts, rows with a "
                f"{text_column!r} column, or batches with `input_ids`."
            )
        if not text.strip():
            continue
        if tokenizer is None:
            raise UnlearnError(f"The {name} corpus is text, which needs a tokenizer; pass one, or pass token ids.")
        yield Document(_cut(_tokens(text, tokenizer, chat_template), tokenizer, max_length))


def special_token_ids(tokenizer: PreTrainedTokenizerBase | None, config: Any, chat_template: bool = False) -> list[int]:
    """BOS, EOS and PAD of tokenizer and model, and with `chat_template` all of the tokenizer's special tokens."""
    found: set[int] = set()
    for owner in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(owner, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    if chat_template and tokenizer is not None:
        found.update(tokenizer.all_special_ids, message_boundary_ids(tokenizer))
    return sorted(int(i) for i in found if i >= 0)


def begins_bare(tokenizer: PreTrainedTokenizerBase | None, special: list[int]) -> bool:
    """Whether a text's first token is one of its own words, no BOS or other token of `special` before it; False where
    that is not known."""
    if tokenizer is None:
        return False
    row = _tokens("a", tokenizer, chat_template=False)
    return bool(row) and row[0] not in special


def message_boundary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the chat template puts around a user's turn, a BOS at its beginning left out. Empty where
    the template marks turns by ordinary words."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    row = _tokens("", tokenizer, chat_template=True)
    if row and row[0] == tokenizer.bos_token_id:
        row = row[1:]
    return sorted(special & {*row})


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> list[int]:
    if not chat_template:
        return list(tokenizer(text)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise UnlearnError("chat_template=True, but this tokenizer has no chat template; leave it out.")
    turns = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def _cut(ids: list[int], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    if len(ids) <= max_length:
        return [ids]
    special = set(tokenizer.all_special_ids)
    lead = next((i for i, token in enumerate(ids) if token not in special), 0)
    head, body, room = ids[:lead], ids[lead:], max_length - lead
    if room < 1:
        raise UnlearnError(f"max_length={max_length} leaves no room for text after {lead} special tokens; raise it.")
    return [head + body[start : start + room] for start in range(0, len(body), room)]


def _rows_of_batch(batch: Mapping[str, Any], name: str) -> Iterator[list[int]]:
    try:
        ids = torch.as_tensor(batch["input_ids"])
        ids = ids[None] if ids.ndim == 1 else ids
        mask = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids))).bool()
        mask = mask[None] if mask.ndim == 1 else mask
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # what torch raises for what is no tensor
        raise UnlearnError(
            f"The {name} corpus holds a batch whose input_ids or attention_mask is no tensor of whole numbers: {error}"
        ) from error
    if ids.ndim != 2 or mask.shape != ids.shape or ids.is_floating_point() or ids.is_complex():
        raise UnlearnError(
            f"The {name} corpus holds a batch with input_ids {tuple(ids.shape)} ({ids.dtype}) and attention_mask "
            f"{tuple(mask.shape)}; expected whole numbers [batch, seq] twice."
        )
    for row, kept in zip(ids, mask, strict=True):
        if kept.any():
            yield row[kept].tolist()
