"""Token ids: rows of a corpus, padded batches, special tokens, prompts and chat templates."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import UnlearnError


class Document(NamedTuple):
    """One document of a corpus as rows of token ids. A long document has several rows."""

    rows: list[list[int]]


def read_corpus(
    corpus: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    max_length: int,
    chat_template: bool = False,
    text_column: str = "text",
) -> Iterator[Document]:
    """Yield the documents of a corpus as token ids, with the tokenizer's special tokens.

    Args:
        corpus (Any): Iterable of strings; a `datasets.Dataset` or another iterable of mappings with a text column; or
            an iterable of batches with `input_ids` `[batch, seq]` and, if padded, `attention_mask`.
        tokenizer (PreTrainedTokenizerBase or None): Needed for text.
        name (str): Name of the corpus in errors.
        max_length (int): Tokens of a row. A longer document is cut into rows, each with the leading special tokens of
            the first.
        chat_template (bool, *optional*, defaults to False): True to apply the tokenizer's chat template to each text,
            as a user's turn.
        text_column (str, *optional*, defaults to "text"): Name of the text column.

    Raises:
        UnlearnError: If the corpus or an item is none of these.
    """
    if isinstance(corpus, (str, bytes)) or not isinstance(corpus, Iterable):
        raise UnlearnError(
            f"{name}: expected a list of texts, a dataset with a {text_column!r} column, or an iterable of batches, "
            f"got {type(corpus).__name__}."
        )
    for item in corpus:
        if isinstance(item, Mapping) and "input_ids" in item:
            yield from (Document([row]) for row in _rows_of_batch(item, name))
            continue
        text = item.get(text_column) if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            columns = f" with columns {sorted(item)}" if isinstance(item, Mapping) else ""
            raise UnlearnError(
                f"{name}: expected texts, rows with a {text_column!r} column, or batches with `input_ids`, got a "
                f"{type(item).__name__}{columns}."
            )
        if not text.strip():
            continue
        if tokenizer is None:
            raise UnlearnError(f"{name}: expected token ids, got text without a tokenizer. Pass tokenizer=.")
        yield Document(_cut(_tokens(text, tokenizer, chat_template), tokenizer, max_length))


def special_token_ids(tokenizer: PreTrainedTokenizerBase | None, config: Any, chat_template: bool = False) -> list[int]:
    """Return the ids of BOS, EOS and PAD, and with `chat_template` of all special tokens."""
    found: set[int] = set()
    for owner in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(owner, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    if chat_template and tokenizer is not None:
        found.update(tokenizer.all_special_ids, message_boundary_ids(tokenizer))
    return sorted(int(i) for i in found if i >= 0)


def begins_bare(tokenizer: PreTrainedTokenizerBase | None, special: Collection[int]) -> bool:
    """Return True if the tokenizer puts no token of `special`, such as BOS, before a text.

    Without a tokenizer, False.
    """
    if tokenizer is None:
        return False
    row = _tokens("a", tokenizer, chat_template=False)
    return bool(row) and row[0] not in special


def message_boundary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens of the chat template around a user's turn, without a leading BOS.

    The list is empty if the template marks turns by ordinary words.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    row = _tokens("", tokenizer, chat_template=True)
    if row and row[0] == tokenizer.bos_token_id:
        row = row[1:]
    return sorted(special & {*row})


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> list[int]:
    if not chat_template:
        return list(tokenizer(text)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise UnlearnError("chat_template=True: expected False, since this tokenizer has no chat template.")
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
        raise UnlearnError(f"max_length={max_length}: expected more than the {lead} leading special tokens.")
    return [head + body[start : start + room] for start in range(0, len(body), room)]


def _rows_of_batch(batch: Mapping[str, Any], name: str) -> Iterator[list[int]]:
    try:
        ids = torch.as_tensor(batch["input_ids"])
        ids = ids[None] if ids.ndim == 1 else ids
        mask = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids))).bool()
        mask = mask[None] if mask.ndim == 1 else mask
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch's errors for other values
        raise UnlearnError(
            f"{name}: expected batches with input_ids and attention_mask of whole numbers [batch, seq]: {error}"
        ) from error
    if ids.ndim != 2 or mask.shape != ids.shape or ids.is_floating_point() or ids.is_complex():
        raise UnlearnError(
            f"{name}: expected input_ids and attention_mask of whole numbers [batch, seq], got {tuple(ids.shape)} "
            f"({ids.dtype}) and {tuple(mask.shape)}."
        )
    for row, kept in zip(ids, mask, strict=True):
        if kept.any():
            yield row[kept].tolist()


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids `[batch, seq]`, 0 at padding, and a bool mask, True at tokens; seq is at least 1."""
    ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids, mask


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id for padding: PAD, or EOS for GPT-2 and others without PAD, or else 0."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a prompt, without the EOS or SEP that some tokenizers append to every text.

    A model would not continue after it. An EOS at the end of the text itself stays.
    """
    ids = list(tokenizer(text)["input_ids"])
    closing = [getattr(tokenizer, name, None) for name in ("eos_token_id", "sep_token_id")]
    if len(ids) > 1 and ids[-1] in closing:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[:-1] if ids[-1 - len(own) : -1] == own else ids
    return ids


def question_prompt(tokenizer: PreTrainedTokenizerBase, question: str, chat_template: bool = False) -> str:
    """Return a question up to the beginning of its answer: "question\\nAnswer:".

    With `chat_template` the question is the user's turn and the model's turn begins with "Answer:". Either way the
    answer's first token carries the blank before it.
    """
    if not chat_template:
        return f"{question}\nAnswer:"
    return turn_prompt(tokenizer, question) + "Answer:"


def turn_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return `text` as a user's turn with the beginning of the model's turn, to be tokenized as usual.

    Raises:
        UnlearnError: If the tokenizer has no chat template.
    """
    return conversation(tokenizer, [text])


def conversation(tokenizer: PreTrainedTokenizerBase, said: Sequence[str]) -> str:
    """Return the text of a conversation with the beginning of the model's next turn.

    It is to be tokenized as usual. The template's BOS is left out if the tokenizer adds one itself.

    Args:
        tokenizer (PreTrainedTokenizerBase): Tokenizer with a chat template.
        said (Sequence[str]): The turns of user and model by turns, the user first and last.

    Raises:
        UnlearnError: If the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UnlearnError("chat_template=True: expected False, since this tokenizer has no chat template.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    if bos and rendered.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        rendered = rendered[len(bos) :]
    return rendered
