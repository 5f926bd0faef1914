"""`CorpusSums`: sums of the SAE's activations on the selection rows of both corpora."""

from typing import Any

from torch import Tensor

from sae_unlearn.backbone.distributed import gathered, is_mine, summed
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.fit.checkpoint import Stateful
from sae_unlearn.guardrail.fit.encoded_rows import CollectedRows, EncodedRows, ResidualRows
from sae_unlearn.guardrail.fit.options import FitPlan
from sae_unlearn.guardrail.fit.passes import FitPasses, Rows, rows_of
from sae_unlearn.guardrail.fit.selection import FeatureSums
from sae_unlearn.guardrail.gate.offline import content_tokens, message_ends


class CorpusSums:
    """The rows of each corpus and what the fit adds up on them before it chooses features.

    Args:
        plan (FitPlan): The checked arguments of the fit.
        passes (FitPasses): Its runs of rows, with the filter of outliers.

    Attributes:
        rows (dict[str, Rows]): Rows by role, "forget" or "retain".
        sums (dict[str, FeatureSums]): Sums over their selection rows.
        encoded (dict[str, CollectedRows]): What the gate reads of them, with a cross-fitted gate only.
    """

    def __init__(self, plan: FitPlan, passes: FitPasses) -> None:
        self._plan, self._passes = plan, passes
        self.rows: dict[str, Rows] = {}
        self.sums: dict[str, FeatureSums] = {}
        self.encoded: dict[str, CollectedRows] = {}

    def read(self, role: str, corpus: Any) -> None:
        """Run the selection rows of a corpus and sum their activations."""
        if corpus is None:
            return
        rows = rows_of(self._plan, role, corpus)
        total = rows.selected_of(len(corpus)) if hasattr(corpus, "__len__") else None
        self.begin(role, rows)
        for batch in self._passes.run(rows, f"{role}: features", total, self.parts(role)):
            self.add(role, batch)
        self.end(role)

    def begin(self, role: str, rows: Rows) -> None:
        """Set the rows of a corpus and empty sums, before they are run."""
        self.rows[role], self.sums[role] = rows, FeatureSums(self._plan.sae)
        if self._plan.cross_fitted:
            sae, reads = self._plan.sae, self._plan.gate_reads
            self.encoded[role] = ResidualRows(sae.d_in) if reads == "direction" else EncodedRows(sae)

    def parts(self, role: str) -> dict[str, Tensor | Stateful]:
        """Return the sums of the pass over the selection rows of a corpus."""
        found: dict[str, Tensor | Stateful] = {
            "sums": self.sums[role],
            "reconstruction": self.sums[role].reconstruction,
        }
        return found | {"active": self.encoded[role]} if self._plan.cross_fitted else found

    def add(self, role: str, batch: ResidualBatch) -> None:
        """Sum the activations of a batch of selection rows."""
        kept = content_tokens(batch, self._plan.config)
        content = batch.residual[kept].float()
        sums = self.sums[role] if is_mine(batch.number) else None
        if self._plan.cross_fitted and is_mine(batch.number):
            ends = message_ends(batch, self._plan.config) if self._plan.paragraphs else None
            self.encoded[role].add(batch, kept, ends)
        for owner, tokens in self._passes.outliers.filter(sums, content):
            owner.add(tokens)

    def end(self, role: str) -> None:
        """Complete the sums of a corpus after all its selection rows were run.

        Raises:
            GuardrailError: If the corpus is empty, or differs between processes.
        """
        for owner, tokens in self._passes.outliers.flush():
            owner.add(tokens)
        rows = self.rows[role]
        if len({*gathered(rows.digest.hexdigest())}) > 1:
            raise GuardrailError(
                f"{role}: the processes got different corpora. Pass the same one to all of them; they share its "
                "batches."
            )
        for sums in (self.sums[role], self.sums[role].reconstruction):
            sums.restore(summed(sums.state()))
        if not rows.documents:
            raise GuardrailError(f"{role}: expected at least {8 if role == 'forget' else 32} texts, got none.")
        if not self.sums[role].tokens:
            raise GuardrailError(f"{role}: its {rows.rows} rows have no content tokens. Pass more text.")
