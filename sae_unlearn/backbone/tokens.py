"""From what a user calls a corpus to rows of token ids.

Rows of token ids as tensors.

Token ids of a text that something is to follow.

How questions become prompts, for plain models and for those with a chat template.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
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


def begins_bare(tokenizer: PreTrainedTokenizerBase | None, special: Collection[int]) -> bool:
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


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids `[batch, seq]`, zeros at padding, and a bool mask, True at tokens; seq is at least 1."""
    ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids, mask


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that pads. GPT-2 and others have none of their own: it is the one that ends a sequence then, or 0."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`text` as the tokenizer makes it, less an EOS or SEP with which some tokenizers close every text: nothing would
    follow that. One that stands at the end of the text itself stays."""
    ids = list(tokenizer(text)["input_ids"])
    closing = [getattr(tokenizer, name, None) for name in ("eos_token_id", "sep_token_id")]
    if len(ids) > 1 and ids[-1] in closing:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[:-1] if ids[-1 - len(own) : -1] == own else ids
    return ids


def question_prompt(tokenizer: PreTrainedTokenizerBase, question: str, chat_template: bool = False) -> str:
    """A question up to where its answer begins: "question\\nAnswer:".

    With `chat_template` the question is the user's turn and the model's turn begins with "Answer:". Either way the
    answer's first token carries the blank before it.
    """
    if not chat_template:
        return f"{question}\nAnswer:"
    return turn_prompt(tokenizer, question) + "Answer:"


def turn_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` as the user's turn, and the beginning of the model's, as text to be tokenised in the ordinary way.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    return conversation(tokenizer, [text])


def conversation(tokenizer: PreTrainedTokenizerBase, said: Sequence[str]) -> str:
    """What user and model said in turn, the user first and last, and the beginning of the model's next turn; as text to
    be tokenised in the ordinary way. A BOS that the template writes is left out where the tokenizer writes one itself.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("chat_template=True, but this tokenizer has no chat template; leave it out.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    if bos and rendered.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        rendered = rendered[len(bos) :]
    return rendered
