"""Which documents of a corpus serve for what in a fit."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator

from sae_unlearn.backbone.tokens import Document


# Which documents serve for what, by their number modulo the cycle's length. The report's documents are seen neither by
# the selection of features nor by the threshold.
FORGET_CYCLE = ("select", "threshold", "report", "select")
RETAIN_CYCLE = ("select", "threshold", "select", "report")
PUBLISHED_CYCLE = ("all",)


class Rows:
    """The rows of a corpus that are kept for the second part of fitting, bounded in number.

    Iterating gives the rows for the selection of features, as they come; the others are put aside, at most `limit`
    documents of each use. Once those are full, all later documents go to the selection.

    Attributes:
        threshold, report: rows put aside.
        digest: SHA-256 of all rows read so far.
        again: rows of the first `keep` documents of the selection, for those who need them a second time.
    """

    def __init__(self, documents: Iterable[Document], cycle: tuple[str, ...], limit: int, keep: int = 0) -> None:
        self._documents = documents
        self._cycle = cycle
        self._limit = limit
        self._keep = keep
        self.threshold: list[list[int]] = []
        self.report: list[list[int]] = []
        self.again: list[list[int]] = []
        self.documents = self.rows = self.tokens = self.selection_rows = 0
        self.digest = hashlib.sha256()
        self._kept = {"threshold": 0, "report": 0, "again": 0}

    def selected_of(self, documents: int) -> int:
        """About how many of so many documents serve for the selection of features."""
        aside = [documents * self._cycle.count(use) // len(self._cycle) for use in ("threshold", "report")]
        return documents - sum(min(number, self._limit) for number in aside)

    def __iter__(self) -> Iterator[list[int]]:
        for document in self._documents:
            use = self._cycle[self.documents % len(self._cycle)]
            self.documents += 1
            self.rows += len(document.rows)
            self.tokens += sum(len(row) for row in document.rows)
            for row in document.rows:
                self.digest.update(array("q", [len(row), *row]).tobytes())
            if use == "all":
                self.threshold += document.rows
                self.report += document.rows
                use = "select"
            elif use != "select" and self._kept[use] >= self._limit:
                use = "select"
            if use == "select":
                self.selection_rows += len(document.rows)
                if self._kept["again"] < self._keep:
                    self._kept["again"] += 1
                    self.again += document.rows
                yield from document.rows
            else:
                self._kept[use] += 1
                getattr(self, use).extend(document.rows)
