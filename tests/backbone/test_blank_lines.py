"""Tokens that hold a blank line, found in tokenizers of each kind."""

import pytest
from blank_line_tokenizer import paragraph_tokenizer
from tiny_topic import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_unlearn.backbone.blank_lines import blank_line_ids
from sae_unlearn.errors import UnlearnError


def of_bytes(merges: list[tuple[str, str]], regex: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE; with `regex` GPT-2's division into words, by which two newlines before a word stay apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def test_all_tokens_with_a_blank_line_are_found() -> None:
    merges = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), (".", "ĊĊ"), ("Ċ", "Ġ")]
    tokenizer = of_bytes(merges, regex=False)
    vocabulary = tokenizer.get_vocab()
    assert blank_line_ids(tokenizer) == sorted(vocabulary[token] for token in ("ĊĊ", "ĊĊĊ", ".ĊĊ"))


def test_in_the_tokenizer_of_the_fit() -> None:
    tokenizer = paragraph_tokenizer()
    (blank,) = blank_line_ids(tokenizer)
    assert tokenizer("w2 w3\n\nw4").input_ids.count(blank) == 1
    assert blank not in tokenizer("w2\nw3").input_ids


@pytest.mark.parametrize(
    "tokenizer",
    [of_bytes([], regex=False), of_bytes([("Ċ", "Ċ")], regex=True), tiny_tokenizer()],
    ids=["no token", "two newlines before a word", "no newline"],
)
def test_a_tokenizer_that_writes_it_as_several_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnlearnError, match="paragraphs=True"):
        blank_line_ids(tokenizer)
