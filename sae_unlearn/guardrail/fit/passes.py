"""The passes of a fit: rows through the model, shared among processes, and written down as they go on.

Which documents of a corpus serve for what in a fit.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from sae_unlearn.backbone.distributed import is_mine, process_index
from sae_unlearn.backbone.identity import model_key
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.backbone.tokens import Document, read_corpus
from sae_unlearn.guardrail.fit.checkpoint import EVERY, FitCheckpoint, Standing, Stateful
from sae_unlearn.guardrail.fit.options import FitPlan
from sae_unlearn.guardrail.fit.selection import OUTLIER_FACTOR, OutlierFilter
from sae_unlearn.guardrail.offline import unguarded_residuals


# Which documents serve for what, by their number modulo the cycle's length. The report's documents are seen neither by
# the selection of features nor by the threshold.
FORGET_CYCLE = ("select", "threshold", "report", "select")
RETAIN_CYCLE = ("select", "threshold", "select", "report")
PUBLISHED_CYCLE = ("all",)
CROSS_FITTED_CYCLE = ("select",)
DOSE_DOCUMENTS = 64  # of the forget text, run a second time to measure the dose where no rows are put aside


class Rows:
    """The rows of a corpus that are kept for the second part of fitting, bounded in number.

    Iterating gives the rows for the selection of features, as they come; the others are put aside, at most `limit`
    documents of each use. Once those are full, all later documents go to the selection.

    Attributes:
        threshold, report: rows put aside.
        digest: SHA-256 of all rows read so far.
        again: rows of the first `keep` documents of the selection, for those who need them a second time.
        selection_documents: number of the document of each row of the selection.
    """

    def __init__(self, documents: Iterable[Document], cycle: tuple[str, ...], limit: int, keep: int = 0) -> None:
        self._documents = documents
        self._cycle = cycle
        self._limit = limit
        self._keep = keep
        self.threshold: list[list[int]] = []
        self.report: list[list[int]] = []
        self.again: list[list[int]] = []
        self.selection_documents: list[int] = []
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
                self.selection_documents += [self.documents - 1] * len(document.rows)
                if self._kept["again"] < self._keep:
                    self._kept["again"] += 1
                    self.again += document.rows
                yield from document.rows
            else:
                self._kept[use] += 1
                getattr(self, use).extend(document.rows)


def rows_of(plan: FitPlan, role: str, corpus: Any) -> Rows:
    """The rows of a corpus, sorted by what they serve for."""
    cycle = PUBLISHED_CYCLE if plan.faithful else {"forget": FORGET_CYCLE, "retain": RETAIN_CYCLE}[role]
    keep = plan.max_held_out if not plan.sae.exact_in_slices else 0
    if plan.cross_fitted:
        cycle, keep = CROSS_FITTED_CYCLE, DOSE_DOCUMENTS if role == "forget" else 0
    return Rows(read_corpus(corpus, plan.tokenizer, role, **plan.read), cycle, plan.max_held_out, keep)


class FitPasses:
    """Runs rows through a fit's model.

    Attributes:
        outliers: what has been seen of the tokens' norms, which every pass is saved with.
        checkpoint: where the passes are saved; None where they are not.
    """

    def __init__(self, plan: FitPlan) -> None:
        self.plan = plan
        self.outliers = OutlierFilter(float("inf") if plan.faithful else OUTLIER_FACTOR)
        self.checkpoint = None if plan.checkpoint_dir is None else FitCheckpoint(plan.checkpoint_dir, settings_of(plan))

    def standing(self) -> Stateful:
        """What every pass is saved with."""
        return self.outliers

    def is_shared_out(self) -> bool:
        """Whether each process runs its own batches alone by now, which all of them know."""
        return self.outliers.median is not None

    def run(
        self,
        rows: Iterable[list[int]],
        title: str,
        total: int | None,
        parts: Mapping[str, Tensor | Stateful] | None = None,
    ) -> Iterator[ResidualBatch]:
        """Rows through the model, up to the guarded layer: the batches that are this process's. Until the median norm
        is known, every process runs all of them, so that it is the same for all.

        Args:
            total: how many rows there will be, as far as that is known; for the bar.
            parts: what is summed over the batches; with them and a `checkpoint_dir` the pass is saved as it goes on.
        """
        checkpoint = None if parts is None else self.checkpoint
        parts = {"outliers": self.standing(), **(parts or {})}
        start = Standing() if checkpoint is None else checkpoint.restore(title, parts)
        met = not start.done

        def digest() -> str | None:
            return rows.digest.hexdigest() if isinstance(rows, Rows) else None

        def wanted(number: int) -> bool:
            nonlocal met
            if number == start.done - 1 and not start.finished:
                start.check(digest())
                met = True
            return number >= start.done and (is_mine(number) or not self.is_shared_out())

        given = 0

        def counted() -> Iterator[list[int]]:
            nonlocal given
            for row in rows:
                given += 1
                yield row

        hidden, done, unsaved = not self.plan.progress or process_index() > 0, start.done, 0
        size = self.plan.batch_size
        with tqdm(total=total, desc=title, unit="row", disable=hidden) as bar:
            for batch in unguarded_residuals(self.plan.model, counted(), self.plan.config.layer, size, wanted):
                yield batch
                done, unsaved = batch.number + 1, unsaved + 1
                bar.update(max(0, batch.number * size + len(batch.index) - bar.n))
                if checkpoint is not None and unsaved >= EVERY and self.is_shared_out():
                    checkpoint.save(title, Standing(done, False, digest()), parts)
                    unsaved = 0
            bar.total = given  # until here it was a guess, and the last batches may be another process's
            bar.update(given - bar.n)
        if start.finished or not met:
            start.check(digest() if start.finished else "")
        elif checkpoint is not None and self.is_shared_out():
            checkpoint.save(title, Standing(done, True, digest()), parts)


def settings_of(plan: FitPlan) -> dict[str, Any]:
    """What a fit hangs on, as JSON values."""
    apart = ("model", "tokenizer", "sae", "config", "name", "store_probe", "checkpoint_dir", "progress")
    keys = {"model": model_key(plan.model), "sae": model_key(plan.sae)}
    return plan.config.to_dict() | keys | {name: value for name, value in plan._asdict().items() if name not in apart}
