"""`Fit`: the steps of a fit and the state that they share."""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.backbone.distributed import gathered, summed
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.validation import check_numbers, check_threshold
from sae_unlearn.guardrail.fit.calibration import (
    MIN_THRESHOLD_ROWS,
    NO_BOUNDARIES,
    PLAIN_TEXT,
    auroc,
    between,
    percentile_threshold,
    report,
    warnings_of,
)
from sae_unlearn.guardrail.fit.checkpoint import Stateful
from sae_unlearn.guardrail.fit.corpus_sums import CorpusSums
from sae_unlearn.guardrail.fit.dose import EditMoments, clamp_values
from sae_unlearn.guardrail.fit.options import FitPlan
from sae_unlearn.guardrail.fit.passes import PROBE_ROWS, FitPasses
from sae_unlearn.guardrail.fit.reconstruction import reconstruction_warning
from sae_unlearn.guardrail.fit.row_statistics import RowStatistics
from sae_unlearn.guardrail.fit.selection import feature_figures, log_ratios, select_features
from sae_unlearn.guardrail.fit.serving_lengths import joined_rows
from sae_unlearn.guardrail.fit.topk_approximation import Disagreement, TopKThresholds, approximation_warning, joined
from sae_unlearn.guardrail.fit.windowed_fit import WindowedFit
from sae_unlearn.guardrail.fit.windowed_steps import fitted_gate, measured, out_of_fold_values
from sae_unlearn.guardrail.gate.offline import content_tokens, read_batch
from sae_unlearn.guardrail.storage.reading import Artefact
from sae_unlearn.guardrail.weights import EncoderRows, GuardrailEncoder, check_lowers, check_tensors, tensors_of
from sae_unlearn.sae.slice import SAESlice


MANY_OUTLIERS = 0.5
"""Mean number of outlying tokens in a row above which the gate leaves them out, as the sums do.

Models without BOS have one at the start of each row, so for them the gate always does, also after a fit on texts that
begin with a chat template's tokens. Elsewhere they are rare, and reading every token's norm would cost more than they
do.
"""
LEAST_ABLATIONS = 2.0  # the default dose is at least this multiple of the edit that sets the features to 0


class Fit:
    """State of one fit. Steps: `corpora.read` for both corpora, `choose`, `calibrate`, `artefact`."""

    def __init__(self, plan: FitPlan) -> None:
        self.plan = plan
        self.config, self.sae, self.faithful = plan.config, plan.sae, plan.faithful
        self.passes = FitPasses(plan)
        self.outliers = self.passes.outliers
        self.outliers_left_out = 0  # by all processes, once everything was read
        self.corpora = CorpusSums(plan, self.passes)
        self.rows, self.sums = self.corpora.rows, self.corpora.sums
        self.shared: dict[str, RowStatistics] = {}  # of passes that several fits read together, by title
        self.windowed: WindowedFit | None = None
        self.statistics = {"threshold": torch.zeros(0), "forget": torch.zeros(0), "retain": torch.zeros(0)}
        self.short: dict[str, Tensor] = {}
        self.percentile: float | None = None
        self.margin: float | None = None
        self.topk: TopKThresholds | None = None
        self.disagreement: dict[str, Disagreement] = {}

    def choose(self) -> None:
        """Select the features, unless they were passed, and slice the SAE."""
        if self.config.feature_ids is None:
            plan = self.plan
            self.config.feature_ids = select_features(
                self.sums["forget"], self.sums["retain"], plan.num_features, plan.ratio_percentile, plan.importance
            )
        self.outliers_left_out = sum(gathered(self.outliers.dropped))
        many = self.outliers_left_out > MANY_OUTLIERS * sum(rows.selection_rows for rows in self.rows.values())
        along = self.plan.gate_reads == "direction"  # one such token would move it by HIGHEST
        if (many or along or self.plan.begins_bare) and math.isfinite(self.outliers.limit):
            self.config.tokens = replace(self.config.tokens, outlier_norm=self.outliers.limit)
        if self.plan.evidence == "log_ratio":
            ids = [*self.config.feature_ids]  # not a tuple: that would index a tensor's dimensions
            self.config.feature_evidence = log_ratios(self.sums["forget"], self.sums["retain"], ids)
            self.config.threshold = self.plan.threshold
            check_numbers(self.config)  # the range of a threshold by hand depends on the evidence
        thresholds = self._topk_thresholds()
        std = None if self.topk is None else self.topk.std
        self.part: SAESlice = self.sae.slice(self.config.feature_ids, thresholds, std)
        check_lowers(self.part.W_enc.T, self.part.W_dec, "the SAE")
        self.encoder_rows = EncoderRows.of(self.part)
        if self.plan.cross_fitted:
            self.windowed, self.encoder_rows = fitted_gate(
                self.plan, self.config, self.corpora.encoded, self.rows, self.encoder_rows
            )
            self.corpora.encoded.clear()
        self.encoder = GuardrailEncoder.of(self.encoder_rows)
        self.moments = EditMoments(self.part.W_dec, self.config.clamp_mode)

    def calibrate(self) -> None:
        """Set the threshold, unless it was passed, and measure the gate on the report rows."""
        percentile, margin = self.plan.threshold_percentile, self.plan.margin
        if self.windowed is not None:
            self._statistics(self.rows["forget"].again, "forget: dose", moments=True)
            self.statistics = out_of_fold_values(self.windowed)
            if self.plan.threshold is None:
                self.percentile, self.margin = percentile, margin
            return
        above = torch.zeros(0)
        if "forget" in self.rows and not self.faithful:
            above = self._statistics(self.rows["forget"].threshold, "forget: threshold", moments=True).whole
        if "retain" in self.rows:
            rows = self.rows["retain"].threshold
            if self.config.threshold is None and len(rows) < MIN_THRESHOLD_ROWS:
                raise GuardrailError(
                    f"retain: {len(rows)} of its {self.rows['retain'].rows} rows are left for the threshold, too few. "
                    f"Pass at least {4 * MIN_THRESHOLD_ROWS} retain documents, or a threshold."
                )
            self.statistics["threshold"] = self._statistics(self.threshold_rows(), "retain: threshold").whole
            if self.config.threshold is None:
                found = percentile_threshold(self.statistics["threshold"], percentile)
                check_threshold(found, self.config, percentile)
                self.config.threshold = between(found, above, margin)
                self.percentile, self.margin = percentile, margin
            self.statistics["retain"] = self._held_out("retain")
        if "forget" in self.rows:
            self.statistics["forget"] = self._held_out("forget")

    def threshold_rows(self) -> list[list[int]]:
        """Return the retain rows whose statistic sets the threshold, at the deployment's length for a service."""
        rows = self.rows["retain"].threshold
        if not self.plan.for_serving:
            return rows
        return joined_rows(rows, self.plan.read["max_length"], self.config.tokens.special_ids or ())

    def artefact(self) -> Artefact:
        """Return the fitted guardrail."""
        tensors, plan = self.tensors(), self.plan
        self.config.calibration = self.calibration() | {
            "dose": {"unit": plan.clamp_unit, "scale": self.scale},
            "importance": plan.importance,
            "ratio_percentile": None if plan.given_features else plan.ratio_percentile,
            "max_length": plan.read["max_length"],
            "chat_template": plan.read["chat_template"],
        }
        if plan.for_serving:
            self.config.calibration["for_serving"] = True
        if self.topk is not None:
            warnings.warn(approximation_warning(self.config.calibration["topk"]), stacklevel=4)
        if plan.store_probe:
            self.config.calibration |= self._probe()
        return Artefact(self.config, tensors, None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the guardrail's tensors, checked.

        The default dose is raised if the features are a large part of the residual stream.
        """
        mean_active = None
        if "forget" in self.sums:
            mean_active = self.sums["forget"].mean_active()[self.part.feature_ids]
            silent = [i for i, m in zip(self.part.feature_ids, mean_active.tolist(), strict=True) if m == 0]
            if silent and self.plan.clamp_unit != "absolute":
                raise GuardrailError(
                    f"Features {silent[:5]} are never active on the forget text, so their dose in unit "
                    f"{self.plan.clamp_unit!r} is 0. Leave them out, or pass clamp_value."
                )
        self.scale = self.plan.clamp_scale
        if self.plan.usual_dose and self.plan.clamp_unit == "residual" and self.outliers.median:
            least = LEAST_ABLATIONS * self.moments.norm(torch.zeros(self.config.num_features)) / self.outliers.median
            self.scale = max(self.scale, least)
        self.clamp = clamp_values(
            self.plan.clamp_unit, self.scale, mean_active, self.moments, self.outliers.median, self.config.num_features
        )
        tensors = tensors_of(self.encoder_rows, self.part.W_dec, self.clamp)
        check_tensors(tensors, "the SAE")
        return tensors

    def calibration(self) -> dict[str, Any]:
        """Return counts and measurements of the fit as plain data."""
        median = self.outliers.median
        edit = self.moments.norm(self.clamp) if self.moments.tokens else None
        found: dict[str, Any] = {
            "corpora": {
                role: {
                    "documents": rows.documents,
                    "rows": rows.rows,
                    "tokens": rows.tokens,
                    "selection_rows": rows.selection_rows,
                    "threshold_rows": len(rows.threshold) if self.windowed is None else rows.selection_rows,
                    "report_rows": len(rows.report) or (0 if self.windowed is None else rows.selection_rows),
                }
                for role, rows in self.rows.items()
            },
            "residual_norm_median": median,
            "outlier_tokens_left_out": self.outliers_left_out,
            "edit_norm": edit,
            "edit_to_residual": edit / median if edit is not None and median else None,
        }
        if self.rows:
            found |= report(
                self.config,
                self.statistics["threshold"],
                self.statistics["forget"],
                self.statistics["retain"],
                self.percentile,
                self.margin,
            )
            if len(self.short) == 2:
                found["auroc_short"] = auroc(self.short["forget"], self.short["retain"])
            explained = {role: sums.reconstruction.explained() for role, sums in self.sums.items()}
            found["explained_variance"] = {
                role: round(value, 4) for role, value in explained.items() if value is not None
            }
            doubt = reconstruction_warning(found)
            found["warnings"] = [*([] if doubt is None else [doubt]), *warnings_of(found)]
            found["features"] = feature_figures(self.part.feature_ids, self.sums, self.plan.importance)
        if self.windowed is not None:
            found |= measured(self.windowed, self.config.tau)
        if self.topk is not None:
            compared = {role: counts.rates() for role, counts in self.disagreement.items()}
            about = {"rule": "threshold", "k": self.sae.k, "std": self.topk.std, "tokens": self.topk.tokens}
            found["topk"] = about | compared
            found["warnings"] = [approximation_warning(found["topk"]), *found["warnings"]]
        if self.rows and not self.plan.read["chat_template"] and getattr(self.plan.tokenizer, "chat_template", None):
            found["warnings"] = [PLAIN_TEXT, *found["warnings"]]
        messages = {*(self.config.tokens.boundary_ids or ())} - {*self.config.tokens.paragraph_ids}
        if self.rows and self.plan.by_message and not messages:
            found["warnings"] = [NO_BOUNDARIES, *found["warnings"]]
        return found

    def _probe(self) -> dict[str, Any]:
        """Return some rows and their statistics.

        They are rows of the report, or the first ones if all were fitted on.
        """
        rows = {role: (rows.report or rows.again)[:PROBE_ROWS] for role, rows in self.rows.items()}
        statistics = {role: self._probe_statistics(role, some).tolist() for role, some in rows.items()}
        return {"probe": rows, "probe_statistics": statistics}

    def _probe_statistics(self, role: str, rows: list[list[int]]) -> Tensor:
        if self.windowed is None and self.rows[role].report:  # the report has them; windowed ones are out of fold
            return self.statistics[role][: len(rows)]
        return self._statistics(rows, f"{role}: probe").whole

    def _held_out(self, role: str) -> Tensor:
        rows = self.rows[role].report
        found = self._statistics(rows, f"{role}: report", self.faithful and role == "forget")
        if not self.faithful and not self.plan.read["chat_template"]:
            self.short[role] = found.short
        if self.topk is not None:
            self.disagreement[role] = self._disagreement(self.topk, rows, f"{role}: disagreement")
        return found.whole

    def _topk_thresholds(self) -> Tensor | None:
        """Return thresholds `[N]` for the features of an SAE that cannot be sliced; None for others."""
        if self.sae.exact_in_slices:
            return None
        self.topk = TopKThresholds(self.sae, [*(self.config.feature_ids or ())])
        for role, rows in self.rows.items():
            title = f"{role}: thresholds of features"
            for batch in self.passes.run(rows.again, title, len(rows.again), {"topk": self.topk}):
                self.topk.add(batch.residual[content_tokens(batch, self.config)])
        self.topk.restore(joined(gathered(self.topk.state())))
        return self.topk.thresholds()

    def _disagreement(self, topk: TopKThresholds, rows: list[list[int]], title: str) -> Disagreement:
        """Return counts of how the thresholds of a topk SAE differ from the SAE itself."""
        found, threshold = Disagreement.none(self.config.num_features), torch.tensor(self.config.threshold)
        for batch in self.passes.run(rows, title, len(rows)):
            tokens = batch.residual[content_tokens(batch, self.config)]
            fires = [
                read_batch(batch, encoder, self.config).statistics > threshold for encoder in (topk.true, self.encoder)
            ]
            found = found.plus(Disagreement.of(topk.true(tokens) > 0, self.encoder(tokens) > 0, *fires))
        return Disagreement(**summed(found._asdict()))

    def _statistics(self, rows: list[list[int]], title: str, moments: bool = False) -> RowStatistics:
        """Return the statistics of rows, run here unless a shared pass has run them."""
        if title in self.shared:
            return self.shared[title]
        found = RowStatistics(len(rows))
        parts: dict[str, Stateful] = {"statistics": found, **({"moments": self.moments} if moments else {})}
        for batch in self.passes.run(rows, title, len(rows), parts):
            reading = found.add(batch, self.encoder, self.config)
            if moments:
                self.moments.add(reading.hot_activations[self.outliers.usual(reading.hot_norms)])
        if moments:
            self.moments.restore(summed(self.moments.state()))
        found.share()
        return found
