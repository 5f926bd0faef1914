"""What each token of a row adds to its text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


_UNFINISHED = "\ufffd"  # what a decoder gives for bytes that are a part of a character


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of a row of token ids as one piece for each token; together they are the text.

    A character of several tokens belongs to the last of them, and the others are empty. Blanks before words are kept,
    which a token that is decoded alone may lose.
    """
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text if end == len(ids) else text.rstrip(_UNFINISHED)
        pieces.append(whole[len(done) :])
        done = whole if len(whole) > len(done) else done
    return pieces
