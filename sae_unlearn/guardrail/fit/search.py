"""`search_guardrail`: the best of several fits, chosen on rows put aside and reported on others.

Documents are assigned in a cycle of five: three to fit the candidates on, one to choose among them, one to report on.

1. Each candidate is fitted on the first three and measured on the fourth: its score is the mean of the AUROC of whole
   rows and of their first 24 tokens (of whole rows alone with a chat template).
2. The order is by coordinates: the SAEs with the given options, then the statistics with the best SAE, then the numbers
   of features with the best of both. A candidate is started only if the slowest one so far fits into the time left.
3. The best one is fitted again on the first four and reported on the fifth, on which nothing was chosen.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import gathered, process_index
from sae_unlearn.backbone.tokens import read_corpus
from sae_unlearn.cards.provenance import public_source
from sae_unlearn.checks import check_number
from sae_unlearn.errors import GuardrailError, UnlearnError, as_guardrail_error
from sae_unlearn.guardrail.fit.calibration import auroc, fire_rate
from sae_unlearn.guardrail.fit.fit import place_fitted
from sae_unlearn.guardrail.fit.options import FitPlan, plan_fit
from sae_unlearn.guardrail.fit.steps import Fit
from sae_unlearn.options.field import merged, takes_options
from sae_unlearn.options.fit import GuardrailFitConfig, filled
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.choice import saes_for


FITTED, CHOSEN_ON, REPORTED = (0, 1, 2), 3, 4  # numbers of documents modulo `CYCLE`
CYCLE = 5
STATISTICS = ("windowed", "ratio")
COUNTS = (20, 40, 80)
LEAST_ROWS = 8
_FIXED = ("features", "threshold", "preset", "topk", "checkpoint_dir", "store_probe")
"""Options that leave nothing to choose, or that one fit has and a search has not."""


@dataclass(frozen=True)
class Candidate:
    """Settings of one fit.

    Attributes:
        sae (int): Number of the SAE.
        statistic (str): Statistic of the gate.
        num_features (int): Number of guarded features.
    """

    sae: int
    statistic: str
    num_features: int


@takes_options(GuardrailFitConfig)
@as_guardrail_error()
def search_guardrail(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    saes: Sequence[SparseAutoencoder | str] | SparseAutoencoder | str,
    forget: Iterable[Any],
    retain: Iterable[Any],
    *,
    minutes: float = 20.0,
    config: GuardrailFitConfig | None = None,
    **options: Any,
) -> PeftModel:
    """Fit a guardrail with the best SAE, statistic and number of features, and attach it to the model.

    A `statistic` and a `num_features` that are given are kept. Every fifth document has no part in any
    choice, and the report of the guardrail is on these alone.

    Args:
        model (nn.Module): As for `fit_guardrail`.
        tokenizer (PreTrainedTokenizerBase or None): As for `fit_guardrail`.
        saes (Sequence): SAEs of the model's layers, or names of them; or a single one. `"auto"` stands for published
            ones of three layers: the suggested one, and near a third and two thirds of the depth.
        forget (Iterable): As for `fit_guardrail`; at least 40 documents.
        retain (Iterable): As for `fit_guardrail`; at least 40 documents.
        minutes (float, *optional*, defaults to 20.0): Time after which no candidate is begun. The last fit comes on
            top of it.
        config (GuardrailFitConfig, *optional*): The options; the defaults without one.
        **options (Any): Any field of `GuardrailFitConfig` by its name, in place of its value in `config`.

    Returns:
        `PeftModel`: As from `fit_guardrail`. `peft_config[name].calibration["search"]` lists all candidates with
        their scores.

    Raises:
        GuardrailError: If a value does not fit, an option leaves nothing to choose, or there are too few documents.
    """
    given = merged(GuardrailFitConfig, config, options, GuardrailError)
    check_number("minutes", minutes, above=0, error=GuardrailError)
    usual = GuardrailFitConfig()
    for name in _FIXED:
        if getattr(given, name) != getattr(usual, name):
            raise GuardrailError(f"{name}={getattr(given, name)!r:.80}: expected none in a search. Use fit_guardrail.")
    loaded = saes_for(saes, model, given.layer)
    if not loaded:
        raise GuardrailError("saes: expected at least one SAE, got none.")
    if not any(not isinstance(sae, SparseAutoencoder) or sae.exact_in_slices for sae in loaded):
        raise GuardrailError(
            "saes: expected one whose features are sliced exactly, got top-k or normalized inputs alone. Use "
            "fit_guardrail with topk='threshold'."
        )
    corpora = {"forget": list(forget), "retain": list(retain)}
    search = _Search(model, tokenizer, loaded, corpora, given, time.monotonic() + 60 * minutes)
    search.run()
    fit = search.final()
    return place_fitted(model, {fit.plan.name: fit.artefact()}, [fit.passes])


class _Search:
    """The candidates so far, and the fits that they need."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        saes: list[SparseAutoencoder],
        corpora: dict[str, list[Any]],
        given: GuardrailFitConfig,
        end: float,
    ) -> None:
        self.model, self.tokenizer, self.saes, self.given, self.end = model, tokenizer, saes, given, end
        self.parts = {role: [corpus[i::CYCLE] for i in range(CYCLE)] for role, corpus in corpora.items()}
        for role, corpus in corpora.items():
            if len(corpus) < CYCLE * LEAST_ROWS:
                raise GuardrailError(f"{role}: expected at least {CYCLE * LEAST_ROWS} texts, got {len(corpus)}.")
        self.scores: dict[Candidate, float] = {}
        self.found: list[dict[str, Any]] = []
        self.slowest = 0.0

    def run(self) -> None:
        """Measure candidates until all are measured, or the time is over."""
        usual = filled(self.given, texts=True)
        count, statistic = usual["num_features"], usual["statistic"]
        statistics = STATISTICS if self.given.statistic is None and statistic == STATISTICS[0] else (statistic,)
        counts = COUNTS if self.given.num_features is None else (count,)
        first = Candidate(0, statistic, count)
        total = len(self.saes) + len(statistics) + len(counts) - 2
        hidden = not self.given.progress or process_index() > 0
        with tqdm(total=total, desc="search", unit="fit", disable=hidden) as bar:
            for name, values in (("sae", range(len(self.saes))), ("statistic", statistics), ("num_features", counts)):
                best = self.best if self.scores else first
                for value in values:
                    change: dict[str, Any] = {name: value}
                    candidate = replace(best, **change)
                    if candidate not in self.scores and self._has_time():
                        self._measure(candidate)
                        bar.update()

    @property
    def best(self) -> Candidate:
        """The candidate with the best score; the first of equal ones."""
        return max(self.scores, key=lambda each: self.scores[each])

    def final(self) -> "_SplitFit":
        """Fit the best candidate on all documents but those of the report."""
        if not self.found:
            raise GuardrailError("search: no candidate could be fitted. Give more text, or another SAE.")
        fit = self._fit(self.best, (*FITTED, CHOSEN_ON), REPORTED, self.given.progress)
        place = [each["settings"] for each in self.found].index(self._settings(self.best))
        fit.search = {"chosen": place, "candidates": self.found}
        return fit

    def _has_time(self) -> bool:
        left = self.end - time.monotonic() - self.slowest
        return bool(gathered(left > 0 or not self.scores)[0])  # one clock decides for all processes

    def _measure(self, candidate: Candidate) -> None:
        started = time.monotonic()
        about: dict[str, Any] = {"settings": self._settings(candidate)}
        score = float("-inf")
        try:
            fit = self._fit(candidate, FITTED, CHOSEN_ON, False)
        except UnlearnError as error:
            about["refused"] = str(error)
        else:
            topic, other = fit.statistics["forget"], fit.statistics["retain"]
            values = [auroc(topic, other)]
            if len(fit.short) == 2:
                values.append(auroc(fit.short["forget"], fit.short["retain"]))
            known = [value for value in values if value is not None]
            score = round(sum(known) / len(known), 3)
            about |= {"score": score, "auroc": values[0], "auroc_short": values[1] if len(values) > 1 else None}
            for role, rows in (("forget", topic), ("retain", other)):
                about[f"fire_rate_{role}"] = fire_rate(rows, fit.config.tau)["rate"]
        self.scores[candidate] = score
        seconds = time.monotonic() - started
        self.slowest = max(self.slowest, seconds)
        self.found.append(about | {"seconds": round(seconds, 1)})

    def _settings(self, candidate: Candidate) -> dict[str, Any]:
        sae = self.saes[candidate.sae]
        source = public_source(sae.source)
        name = source.get("subfolder") or source.get("id")
        about = {"sae": name or f"SAE {candidate.sae}", "layer": sae.layer}
        return about | {"statistic": candidate.statistic, "num_features": candidate.num_features}

    def _fit(self, candidate: Candidate, on: Sequence[int], aside: int, progress: bool) -> "_SplitFit":
        changes: dict[str, Any] = {"statistic": candidate.statistic, "num_features": candidate.num_features}
        own = replace(self.given, **changes, progress=progress)
        corpora = {role: [item for i in on for item in parts[i]] for role, parts in self.parts.items()}
        sae = self.saes[candidate.sae]
        plan = plan_fit(self.model, self.tokenizer, sae, corpora["forget"], corpora["retain"], own)
        fit = _SplitFit(plan._replace(put_aside=True), {role: parts[aside] for role, parts in self.parts.items()})
        for role, corpus in corpora.items():
            fit.corpora.read(role, corpus)
            fit.put_aside(role)
        fit.choose()
        fit.calibrate()
        return fit


class _SplitFit(Fit):
    """A fit that is reported on documents of the caller's, and uses all others for the fit."""

    def __init__(self, plan: FitPlan, aside: Mapping[str, Iterable[Any]]) -> None:
        super().__init__(plan)
        self._aside = aside
        self.search: dict[str, Any] = {}

    def put_aside(self, role: str) -> None:
        """Report on the documents of the caller's."""
        documents = read_corpus(self._aside[role], self.plan.tokenizer, role, **self.plan.read)
        self.rows[role].report = [row for document in documents for row in document.rows]

    def calibrate(self) -> None:
        super().calibrate()
        if self.windowed is not None:  # whose own figures are of the rows that it was fitted on, out of fold
            self.statistics |= {role: self._held_out(role) for role in self.rows}

    def calibration(self) -> dict[str, Any]:
        """Return the calibration, whose figures are of the rows put aside, with all candidates."""
        found = super().calibration()
        found["auroc"] = auroc(self.statistics["forget"], self.statistics["retain"])
        return found | {"search": self.search}
