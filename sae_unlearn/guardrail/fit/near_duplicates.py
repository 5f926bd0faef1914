"""Search for texts that occur in both corpora, exactly or nearly.

With S(t) the set of five-word sequences of a text, letters in lower case and punctuation left out,

    overlap(a, b) = |S(a) and S(b)| / min(|S(a)|, |S(b)|)

and two texts are near duplicates if it is at least 0.5.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple


WORDS = 5
LEAST = 0.5
MOST_TEXTS = 20_000  # of each corpus
_WORD = re.compile(r"\w+")


class NearDuplicate(NamedTuple):
    """A forget text and a retain text that overlap.

    Attributes:
        forget (int): Position in the forget corpus.
        retain (int): Position in the retain corpus.
        overlap (float): Overlap as above, from 0.5 to 1.
        words (str): Beginning of the forget text.
    """

    forget: int
    retain: int
    overlap: float
    words: str


def near_duplicates(forget: Iterable[str], retain: Iterable[str]) -> list[NearDuplicate]:
    """Return the best near duplicate of each forget text that has one, the largest overlap first."""
    index: dict[int, list[int]] = defaultdict(list)
    sizes = []
    for number, text in zip(range(MOST_TEXTS), retain, strict=False):
        sequences = _sequences(text)
        sizes.append(len(sequences))
        for sequence in sequences:
            index[sequence].append(number)
    found = []
    for number, text in zip(range(MOST_TEXTS), forget, strict=False):
        sequences = _sequences(text)
        shared = Counter(place for sequence in sequences for place in index.get(sequence, ()))
        overlaps = {place: count / min(len(sequences), sizes[place]) for place, count in shared.items()}
        best = max(overlaps, key=lambda place: overlaps[place], default=None)
        if best is not None and overlaps[best] >= LEAST:
            found.append(NearDuplicate(number, best, round(overlaps[best], 3), " ".join(text.split())[:60]))
    return sorted(found, key=lambda each: -each.overlap)


def _sequences(text: str) -> set[int]:
    words = _WORD.findall(text.lower())
    if len(words) < WORDS:
        return {hash(tuple(words))} if words else set()
    return {hash(tuple(words[i : i + WORDS])) for i in range(len(words) - WORDS + 1)}
