"""Tokens that hold a blank line, which separates a text's paragraphs."""

import re

from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import UnlearnError


_BLANK_LINE = re.compile(r"\n[ \t\r\f\v]*\n")
_NEWLINES = ("\n", "\u010a", "<0x0A>")  # as tokenizers of text, of bytes and with fallback to bytes write it
_WAYS = ("a\n\nb", "a.\n\nB", "a\n\n\nb", "1\n\n2", 'a"\n\nb', "a)\n\n- b", "a:\n\n1. b", "a \n\nb", "a\n\n  b")
"""Paragraphs by what stands before and after the blank line."""


def blank_line_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens whose text holds a blank line, ascending.

    Raises:
        UnlearnError: If the tokenizer does not write every blank line by such a token, as GPT-2's, which writes two
            newlines.
    """
    some = {i for token, i in tokenizer.get_vocab().items() if any(newline in token for newline in _NEWLINES)}
    found = {i for i in some if _BLANK_LINE.search(str(tokenizer.decode([i])))}
    for text in _WAYS:
        if not found & {*tokenizer(text, add_special_tokens=False)["input_ids"]}:
            raise UnlearnError(
                f"paragraphs=True: expected a tokenizer that writes a blank line as one token, got several for "
                f"{text!r}. Set paragraphs=False."
            )
    return sorted(found)
