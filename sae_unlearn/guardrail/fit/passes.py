"""Passes of a fit: the split of a corpus by use, and runs of rows, shared among processes and saved."""

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
from sae_unlearn.guardrail.gate.offline import unguarded_residuals


# Use of each document, by its number modulo the cycle's length. The report's documents are used neither for the
# selection of features nor for the threshold.
FORGET_CYCLE = ("select", "threshold", "report", "select")
RETAIN_CYCLE = ("select", "threshold", "select", "report")
PUT_ASIDE_CYCLE = ("select", "threshold", "select")  # if the rows of the report are given apart
PUBLISHED_CYCLE = ("all",)
CROSS_FITTED_CYCLE = ("select",)
PROBE_ROWS = 2  # of each corpus, stored with `store_probe`
DOSE_DOCUMENTS = 64  # of the forget text, run a second time to measure the dose where no rows are put aside


class Rows:
    """Rows of a corpus, split by use, with a bounded number of them kept in memory.

    Iteration yields the rows for the selection of features in their order. The others are kept, at most `limit`
    documents of each use; later documents then go to the selection.

    Attributes:
        threshold (list[list[int]]): Rows for the threshold.
        report (list[list[int]]): Rows for the report.
        again (list[list[int]]): Rows of the first `keep` documents of the selection, for a second pass.
        digest (hashlib._Hash): SHA-256 of all rows read so far.
        selection_documents (list[int]): Number of the document of each row of the selection.
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
        """Return about how many of `documents` documents are used for the selection of features."""
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
    """Return the rows of a corpus, split by use."""
    cycle: tuple[str, ...]
    cycle = PUBLISHED_CYCLE if plan.faithful else {"forget": FORGET_CYCLE, "retain": RETAIN_CYCLE}[role]
    if plan.put_aside:
        cycle = PUT_ASIDE_CYCLE
    keep = plan.max_held_out if not plan.sae.exact_in_slices else 0
    if plan.cross_fitted:
        cycle, keep = CROSS_FITTED_CYCLE, DOSE_DOCUMENTS if role == "forget" else PROBE_ROWS
    return Rows(read_corpus(corpus, plan.tokenizer, role, **plan.read), cycle, plan.max_held_out, keep)


class FitPasses:
    """Runs of rows through the model of a fit.

    Attributes:
        outliers (OutlierFilter): Filter of tokens by norm, saved with every pass.
        checkpoint (FitCheckpoint or None): Checkpoint of the passes; None without `checkpoint_dir`.
    """

    def __init__(self, plan: FitPlan) -> None:
        self.plan = plan
        self.outliers = OutlierFilter(float("inf") if plan.faithful else OUTLIER_FACTOR)
        self.checkpoint = None if plan.checkpoint_dir is None else FitCheckpoint(plan.checkpoint_dir, settings_of(plan))

    def standing(self) -> Stateful:
        """Return the state that every pass is saved with."""
        return self.outliers

    def is_shared_out(self) -> bool:
        """Return True once each process runs only its own batches. All processes know it."""
        return self.outliers.median is not None

    def run(
        self,
        rows: Iterable[list[int]],
        title: str,
        total: int | None,
        parts: Mapping[str, Tensor | Stateful] | None = None,
    ) -> Iterator[ResidualBatch]:
        """Run rows up to the guarded layer and yield this process's batches.

        Until the median norm is known, every process runs all batches, so that the median is the same for all.

        Args:
            rows (Iterable[list[int]]): Token ids.
            title (str): Title of the progress bar, and name of the pass in the checkpoint.
            total (int or None): Number of rows, if known; for the progress bar.
            parts (Mapping[str, Tensor | Stateful], *optional*): Sums over the batches. With them and a `checkpoint_dir`
                the pass is saved regularly.
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
            bar.total = given  # it was an estimate, and the last batches may be another process's
            bar.update(given - bar.n)
        if start.finished or not met:
            start.check(digest() if start.finished else "")
        elif checkpoint is not None and self.is_shared_out():
            checkpoint.save(title, Standing(done, True, digest()), parts)


def settings_of(plan: FitPlan) -> dict[str, Any]:
    """Return the settings on which a fit depends, as JSON values."""
    apart = ("model", "tokenizer", "sae", "config", "name", "store_probe", "checkpoint_dir", "progress")
    keys = {"model": model_key(plan.model), "sae": model_key(plan.sae)}
    return plan.config.to_dict() | keys | {name: value for name, value in plan._asdict().items() if name not in apart}
