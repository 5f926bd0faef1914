"""`fit_guardrail`: from a forget corpus and a retain corpus to a guardrail, with forward passes only.

Every row of the corpora is run through the model once, up to the guarded layer:

1. selection rows: sums of activations, scores, the N features (see `selection`);
2. rows put aside of both: their statistic under the gate, and the threshold (see `calibration`);
3. report rows, seen by neither: what the gate does to text it was not fitted on.

The published procedure uses all rows for all of it; `preset="faithful"` does that, in two passes.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.corpus import read_corpus, special_token_ids
from sae_unlearn.backbone.decoder_layers import find_decoder_layers
from sae_unlearn.backbone.model_key import model_key
from sae_unlearn.backbone.processes import gathered, is_mine, process_index, summed
from sae_unlearn.backbone.residuals import ResidualBatch
from sae_unlearn.backbone.sae_fit import check_sae
from sae_unlearn.guardrail.artefact import Artefact
from sae_unlearn.guardrail.attach import bare_model, free_name, place_guardrail, tensors_of
from sae_unlearn.guardrail.calibration import (
    MIN_THRESHOLD_ROWS,
    between,
    check_threshold,
    percentile_threshold,
    report,
    warnings_of,
)
from sae_unlearn.guardrail.config import SAEGuardrailConfig, check_real
from sae_unlearn.guardrail.dose import EditMoments, clamp_values
from sae_unlearn.guardrail.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.fingerprint import fingerprint
from sae_unlearn.guardrail.fit_checkpoint import EVERY, FitCheckpoint, Standing, Stateful
from sae_unlearn.guardrail.layer import GuardrailEncoder
from sae_unlearn.guardrail.outliers import OUTLIER_FACTOR, OutlierFilter
from sae_unlearn.guardrail.reading import content_tokens, read_batch
from sae_unlearn.guardrail.refusal import message_ids
from sae_unlearn.guardrail.rows import (
    FORGET_CYCLE,
    PUBLISHED_CYCLE,
    RETAIN_CYCLE,
    Rows,
)
from sae_unlearn.guardrail.selection import IMPORTANCE, FeatureSums, select_features
from sae_unlearn.guardrail.topk import Disagreement, TopKThresholds, approximation_warning, check_topk, joined
from sae_unlearn.guardrail.unguarded import unguarded_residuals
from sae_unlearn.guardrail.values import check_tensors
from sae_unlearn.sae import SAESlice, SparseAutoencoder


DEFAULT_CLAMP_SCALES = {"feature": 16.0, "residual": 0.5, "absolute": 500.0}
LEAST_ABLATIONS = 2.0  # the usual dose is at least so many times what setting the features to 0 takes away
DEFAULT_RATIO_PERCENTILE = 99.0
DEFAULT_THRESHOLD_PERCENTILE = 97.5
DEFAULT_MARGIN = 0.5
DEFAULT_MIN_TOKENS = 8
PUBLISHED_CLAMP_VALUE = -500.0
PUBLISHED_RATIO_PERCENTILE = 95.0
PUBLISHED_THRESHOLD_PERCENTILE = 95.0


@as_guardrail_error()
def fit_guardrail(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sae: SparseAutoencoder,
    forget: Any = None,
    retain: Any = None,
    *,
    layer: int | None = None,
    num_features: int = 20,
    ratio_percentile: float | None = None,
    threshold_percentile: float | None = None,
    margin: float | None = None,
    features: list[int] | None = None,
    threshold: float | None = None,
    clamp_scale: float | None = None,
    clamp_unit: str = "residual",
    clamp_value: float | None = None,
    clamp_mode: str = "fired",
    importance: str = "mean_squared",
    preset: str | None = None,
    topk: str | None = None,
    statistic: str = "ratio",
    gate_scope: str = "sequence",
    sticky: bool = True,
    action: str = "clamp",
    refusal: str | None = None,
    window: int = 64,
    drift: float = 0.5,
    min_tokens: int = DEFAULT_MIN_TOKENS,
    adapter_name: str | None = None,
    chat_template: bool = False,
    text_column: str = "text",
    max_length: int = 512,
    batch_size: int = 8,
    max_held_out: int = 1024,
    store_probe: bool = False,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> PeftModel:
    """Fit a guardrail for the topic of `forget` on a model, with forward passes only, and put it on the model.

    Args:
        model: a causal language model of transformers, in any dtype, device map or quantisation; or a `PeftModel` that
            the guardrail joins.
        tokenizer: the model's; None where nothing has to be tokenised.
        sae: an SAE of one of the model's layers.
        forget: text of the topic. A list of texts, a `datasets.Dataset` with a `text_column`, or an iterable of either
            or of batches with `input_ids`. At least 8 documents; 100 paragraphs are a good start.
        retain: other text, in the format and at the lengths of deployment, near neighbours of the topic included. At
            least 32 documents.
        layer: 0-based layer whose output is guarded; default the SAE's own.
        num_features: N, how many features are guarded.
        ratio_percentile: features below this percentile of the forget/retain ratio are left out; default 99.0 (95.0
            for the faithful preset, as published). Of a narrow SAE, 95 lets features pass that are active on most
            text, and the gate cannot tell the topic (measured in `benchmarks/default_preset.py`).
        threshold_percentile: the threshold is at least this percentile of the statistic over retain rows put aside;
            default 97.5 (95.0 for the faithful preset, as published). Higher ones lie close to the largest statistic of
            a usual corpus, where one odd row may spoil the gate: see the warnings and the curve in `calibration`.
        margin: how far the threshold is moved from there towards the lower quartile of forget rows put aside, where
            that is higher; 0 <= margin < 1, default 0.5: half way (0.0 for the faithful preset). A topic that stands
            well above other text needs no threshold that just clears the latter.
        features: feature ids, instead of selecting them (zero-shot).
        threshold: the threshold, instead of calibrating it.
        clamp_scale: the dose in `clamp_unit`s; default 0.5 of "residual": the edit is half of the residual
            stream's norm, whatever the topic and the SAE, and at least twice what setting the features to 0 takes
            away. 16.0 of "feature", and the published 500.0 of "absolute".
        clamp_unit: "feature", "residual" or "absolute"; see `SAEGuardrailConfig`.
        clamp_value: the paper's absolute dose, e.g. -500.0; the same as clamp_unit="absolute", clamp_scale=500.
        clamp_mode: "fired" or "all" features are clamped at a hot token.
        importance: "mean_squared" or "squared_mean"; see `selection`.
        preset: "faithful" for the authors' scores, counting, clamp (-500, all features) and use of rows.
        topk: of a topk SAE has to be "threshold": its features, which depend on each other, are approximated by a
            threshold for each. How often that is wrong is measured, warned about, and kept in
            `calibration["topk"]`; see `topk`.
        statistic, gate_scope, sticky, action, window, drift, min_tokens: the gate's; see `SAEGuardrailConfig`.
        refusal: the message of action="refuse", which is answered where the gate fires; see `refusal`.
        adapter_name: the guardrail's name on the model.
        chat_template: put texts as a user's turn into the tokenizer's chat template. Do it if the model is deployed so.
        text_column: column of datasets and mappings that holds the text.
        max_length: longer documents are cut into rows of at most this many tokens.
        batch_size: rows per forward pass; the result does not depend on it, up to rounding.
        max_held_out: documents of each corpus at most that are put aside for the threshold, and for the report; bounds
            memory.
        store_probe: keep the token ids of two forget and two retain rows in the artefact, for `sae-unlearn check`.
            Off by default, since it publishes that much of your text.
        checkpoint_dir: a folder in which the fit writes down every 50 batches where it stands. The same call, once it
            was killed, goes on from there and ends with the same numbers; what it wrote goes when it is done.
        progress: show progress bars.

    Under `accelerate launch` every process is given the same arguments, runs its share of the batches, and ends with
    the same guardrail; a process group has to be up (`accelerate.PartialState()`, or the command line).

    Returns:
        A `PeftModel`, ready to use; `peft_config[name].calibration` holds what was measured.

    Raises:
        GuardrailError: naming the value that does not fit and the mend, before or after the passes; the model is left
            as it was.
    """
    plan = plan_fit(**locals())
    fit = Fit(plan)
    fit.read("forget", forget)
    fit.read("retain", retain)
    fit.choose()
    fit.calibrate()
    guarded = place_guardrail(model, fit.artefact(), plan.name)
    if fit.checkpoint is not None:
        fit.checkpoint.remove()
    return guarded


class FitPlan(NamedTuple):
    """What a fit was asked for, checked. The fields that are not described are `fit_guardrail`'s."""

    model: nn.Module
    """The bare model."""
    tokenizer: PreTrainedTokenizerBase | None
    sae: SparseAutoencoder
    config: SAEGuardrailConfig
    """What is known of it before anything is read."""
    name: str
    faithful: bool
    given_features: bool
    num_features: int
    ratio_percentile: float
    threshold_percentile: float
    margin: float
    importance: str
    usual_dose: bool
    """Whether the dose is the default one."""
    read: dict[str, Any]
    """How a corpus is read."""
    max_held_out: int
    batch_size: int
    store_probe: bool
    checkpoint_dir: str | Path | None
    progress: bool


def plan_fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sae: SparseAutoencoder,
    forget: Any,
    retain: Any,
    *,
    layer: int | None,
    num_features: int,
    ratio_percentile: float | None,
    threshold_percentile: float | None,
    margin: float | None,
    features: list[int] | None,
    threshold: float | None,
    clamp_scale: float | None,
    clamp_unit: str,
    clamp_value: float | None,
    clamp_mode: str,
    importance: str,
    preset: str | None,
    topk: str | None,
    statistic: str,
    gate_scope: str,
    sticky: bool,
    action: str,
    refusal: str | None,
    window: int,
    drift: float,
    min_tokens: int,
    adapter_name: str | None,
    chat_template: bool,
    text_column: str,
    max_length: int,
    batch_size: int,
    max_held_out: int,
    store_probe: bool,
    checkpoint_dir: str | Path | None,
    progress: bool,
) -> FitPlan:
    """The arguments of `fit_guardrail`, checked and made whole; nothing is read yet.

    Raises:
        GuardrailError: naming the value that does not fit and the mend.
    """
    if preset not in (None, "faithful"):
        raise GuardrailError(f"preset={preset!r} is not None or 'faithful'.")
    for name, number in (
        ("clamp_value", clamp_value),
        ("clamp_scale", clamp_scale),
        ("ratio_percentile", ratio_percentile),
        ("threshold_percentile", threshold_percentile),
        ("margin", margin),
    ):
        if number is not None:
            check_real(name, number)
    faithful = preset == "faithful"
    if faithful:
        importance, clamp_mode, min_tokens = "squared_mean", "all", 1
        if clamp_value is None and clamp_scale is None:
            clamp_value = PUBLISHED_CLAMP_VALUE
    if clamp_value is not None:
        if clamp_scale is not None:
            raise GuardrailError(f"clamp_value={clamp_value} and clamp_scale={clamp_scale}: give one of the two.")
        clamp_unit, clamp_scale = "absolute", -clamp_value
    usual_dose = clamp_scale is None
    if clamp_scale is None:
        clamp_scale = DEFAULT_CLAMP_SCALES.get(clamp_unit, 0.0)  # an unknown unit is refused by the config
    if ratio_percentile is None:
        ratio_percentile = PUBLISHED_RATIO_PERCENTILE if faithful else DEFAULT_RATIO_PERCENTILE
    if threshold_percentile is None:
        threshold_percentile = PUBLISHED_THRESHOLD_PERCENTILE if faithful else DEFAULT_THRESHOLD_PERCENTILE
    if margin is None:
        margin = 0.0 if faithful else DEFAULT_MARGIN
    if not 0 <= margin < 1:
        raise GuardrailError(
            f"margin={margin} must be at least 0 and less than 1, where the gate would miss the topic."
        )
    for name, value in (("ratio_percentile", ratio_percentile), ("threshold_percentile", threshold_percentile)):
        if not 0 <= value <= 100:
            raise GuardrailError(f"{name}={value} must lie between 0 and 100.")
    for name, value in (("num_features", num_features), ("max_length", max_length), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise GuardrailError(f"{name}={value!r} must be an integer >= 1.")
    if importance not in IMPORTANCE:
        raise GuardrailError(f"importance={importance!r} is not one of {', '.join(map(repr, IMPORTANCE))}.")
    bare = bare_model(model)
    layer = check_sae(sae, bare, layer)
    check_topk(sae, topk)
    name = free_name(model, adapter_name)
    refusal_ids = None
    if refusal is not None:
        refusal_ids = message_ids(refusal, tokenizer, getattr(bare, "generation_config", None))
    config = SAEGuardrailConfig(
        layer=layer,
        num_features=0 if features is not None else num_features,
        feature_ids=list(features) if isinstance(features, Iterable) else features,
        statistic=statistic,
        gate_scope=gate_scope,
        sticky=sticky,
        threshold=threshold,
        window=window,
        drift=drift,
        min_tokens=min_tokens,
        clamp_value=-float(clamp_scale) if clamp_unit == "absolute" else None,
        clamp_mode=clamp_mode,
        clamp_unit=clamp_unit,
        clamp_scale=float(clamp_scale),
        action=action,
        refusal=refusal,
        refusal_ids=refusal_ids,
        counting="columns" if faithful else "content",
        special_token_ids=special_token_ids(tokenizer, bare.config, chat_template),
        hidden_size=sae.d_in,
        num_layers=len(find_decoder_layers(bare).layers),
        base_model_name_or_path=getattr(bare, "name_or_path", None) or None,
        base_fingerprint=fingerprint(bare, layer),
        sae_source=_provenance(sae),
    )
    _check_corpora(config, forget, retain, topk)
    return FitPlan(
        model=bare,
        tokenizer=tokenizer,
        sae=sae,
        config=config,
        name=name,
        faithful=faithful,
        given_features=features is not None,
        num_features=num_features,
        ratio_percentile=ratio_percentile,
        threshold_percentile=threshold_percentile,
        margin=margin,
        importance=importance,
        usual_dose=usual_dose,
        read={"max_length": max_length, "chat_template": chat_template, "text_column": text_column},
        max_held_out=max_held_out,
        batch_size=batch_size,
        store_probe=store_probe,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
    )


def _provenance(sae: SparseAutoencoder) -> dict[str, Any]:
    """The SAE's source, fit to be published: of a local folder only its name; and its number of features."""
    source = dict(sae.source)
    if source.get("id") and Path(source["id"]).exists():
        source["id"], source["local"] = Path(source["id"]).name, True
    return source | {"d_sae": sae.d_sae}


def _check_corpora(config: SAEGuardrailConfig, forget: Any, retain: Any, topk: str | None) -> None:
    missing = [name for name, corpus in (("forget", forget), ("retain", retain)) if corpus is None]
    if config.feature_ids is None and missing:
        raise GuardrailError(
            f"Selecting features needs `forget` and `retain`; {missing} not given. Or give `features`."
        )
    if config.threshold is None and retain is None:
        raise GuardrailError("Calibrating the threshold needs `retain` text; pass it, or give `threshold`.")
    if config.clamp_unit != "absolute" and forget is None:
        raise GuardrailError(
            f"clamp_unit={config.clamp_unit!r} is measured on `forget` text; pass it, or give clamp_value, e.g. -500.0."
        )
    if topk is not None and forget is None and retain is None:
        raise GuardrailError(f"topk={topk!r} is measured on text; pass `forget` and `retain`.")


def _settings(plan: FitPlan) -> dict[str, Any]:
    """What a fit hangs on, as JSON values."""
    apart = ("model", "tokenizer", "sae", "config", "name", "store_probe", "checkpoint_dir", "progress")
    keys = {"model": model_key(plan.model), "sae": model_key(plan.sae)}
    return plan.config.to_dict() | keys | {name: value for name, value in plan._asdict().items() if name not in apart}


def rows_of(plan: FitPlan, role: str, corpus: Any) -> Rows:
    """The rows of a corpus, sorted by what they serve for."""
    cycle = PUBLISHED_CYCLE if plan.faithful else {"forget": FORGET_CYCLE, "retain": RETAIN_CYCLE}[role]
    keep = plan.max_held_out if plan.sae.architecture == "topk" else 0
    return Rows(read_corpus(corpus, plan.tokenizer, role, **plan.read), cycle, plan.max_held_out, keep)


class Fit:
    """The state of one fit, in the order of its steps: `read` both corpora, `choose`, `calibrate`, then `artefact`."""

    def __init__(self, plan: FitPlan) -> None:
        self.plan = plan
        self.model, self.config, self.sae, self.faithful = plan.model, plan.config, plan.sae, plan.faithful
        self.rows: dict[str, Rows] = {}
        self.sums: dict[str, FeatureSums] = {}
        self.outliers = OutlierFilter(float("inf") if plan.faithful else OUTLIER_FACTOR)
        self.statistics = {"threshold": torch.zeros(0), "forget": torch.zeros(0), "retain": torch.zeros(0)}
        self.percentile: float | None = None
        self.margin: float | None = None
        self.topk: TopKThresholds | None = None
        self.disagreement: dict[str, Disagreement] = {}
        self.checkpoint = None if plan.checkpoint_dir is None else FitCheckpoint(plan.checkpoint_dir, _settings(plan))

    def read(self, role: str, corpus: Any) -> None:
        """Run the selection rows of a corpus and sum their activations."""
        if corpus is None:
            return
        rows = rows_of(self.plan, role, corpus)
        total = len(corpus) if hasattr(corpus, "__len__") else None
        self.begin(role, rows)
        for batch in self.run(rows, f"{role}: features", total, {"sums": self.sums[role]}):
            self.add(role, batch)
        self.end(role)

    def begin(self, role: str, rows: Rows) -> None:
        """The rows of a corpus are about to be run."""
        self.rows[role], self.sums[role] = rows, FeatureSums(self.sae)

    def add(self, role: str, batch: ResidualBatch) -> None:
        """Sum the activations of a batch of selection rows."""
        content = batch.residual[content_tokens(batch, self.config)].float()
        sums = self.sums[role] if is_mine(batch.number) else None
        for owner, tokens in self.outliers.filter(sums, content):
            owner.add(tokens)

    def end(self, role: str) -> None:
        """All selection rows of a corpus were run.

        Raises:
            GuardrailError: there was nothing in it.
        """
        for owner, tokens in self.outliers.flush():
            owner.add(tokens)
        rows = self.rows[role]
        if len({*gathered(rows.digest.hexdigest())}) > 1:
            raise GuardrailError(
                f"The processes were given different {role} corpora; give all of them the same one, which is shared "
                "out among them."
            )
        self.sums[role].restore(summed(self.sums[role].state()))
        if not rows.documents:
            raise GuardrailError(f"The {role} corpus is empty; pass at least {8 if role == 'forget' else 32} texts.")
        if not self.sums[role].tokens:
            raise GuardrailError(f"The {role} corpus has {rows.rows} rows but no content tokens in its selection part.")

    def choose(self) -> None:
        """Select the features, if they were not given, and take their rows of the SAE."""
        if self.config.feature_ids is None:
            plan = self.plan
            chosen = select_features(
                self.sums["forget"], self.sums["retain"], plan.num_features, plan.ratio_percentile, plan.importance
            )
            self.config.feature_ids, self.config.num_features = chosen, len(chosen)
        self.part: SAESlice = self.sae.slice(self.config.feature_ids, self._topk_thresholds())
        self.encoder = GuardrailEncoder.of(self.part)
        self.moments = EditMoments(self.part.W_dec, self.config.clamp_mode)

    def calibrate(self) -> None:
        """Set the threshold, if it was not given, and measure the gate on the report rows."""
        percentile, margin = self.plan.threshold_percentile, self.plan.margin
        above = torch.zeros(0)
        if "forget" in self.rows and not self.faithful:
            above = self._statistics(self.rows["forget"].threshold, "forget: threshold", moments=True)
        if "retain" in self.rows:
            rows = self.rows["retain"].threshold
            if self.config.threshold is None and len(rows) < MIN_THRESHOLD_ROWS:
                raise GuardrailError(
                    f"Only {len(rows)} retain rows are left for the threshold, of {self.rows['retain'].rows}; give at "
                    f"least {4 * MIN_THRESHOLD_ROWS} retain documents, or a threshold."
                )
            self.statistics["threshold"] = self._statistics(rows, "retain: threshold")
            if self.config.threshold is None:
                found = percentile_threshold(self.statistics["threshold"], percentile)
                check_threshold(found, self.config, percentile)
                self.config.threshold = between(found, above, margin)
                self.percentile, self.margin = percentile, margin
            self.statistics["retain"] = self._held_out("retain")
        if "forget" in self.rows:
            self.statistics["forget"] = self._held_out("forget")

    def artefact(self) -> Artefact:
        """The guardrail."""
        tensors, plan = self.tensors(), self.plan
        self.config.calibration = self.calibration() | {
            "importance": plan.importance,
            "ratio_percentile": None if plan.given_features else plan.ratio_percentile,
            "max_length": plan.read["max_length"],
            "chat_template": plan.read["chat_template"],
        }
        if self.topk is not None:
            warnings.warn(approximation_warning(self.config.calibration["topk"]), stacklevel=4)
        if plan.store_probe:
            self.config.calibration["probe"] = {role: rows.report[:2] for role, rows in self.rows.items()}
        return Artefact(self.config, tensors, None)

    def tensors(self) -> dict[str, Tensor]:
        """The guardrail's tensors, checked. The usual dose is raised where the features are much of the residual."""
        mean_active = None
        if "forget" in self.sums:
            mean_active = self.sums["forget"].mean_active()[self.config.feature_ids]
            silent = [i for i, m in zip(self.part.feature_ids, mean_active.tolist(), strict=True) if m == 0]
            if silent and self.config.clamp_unit != "absolute":
                raise GuardrailError(
                    f"Features {silent[:5]} are never active on the forget text, so their dose in units of "
                    f"{self.config.clamp_unit!r} is nothing; leave them out, or give clamp_value."
                )
        if self.plan.usual_dose and self.config.clamp_unit == "residual" and self.outliers.median:
            least = LEAST_ABLATIONS * self.moments.norm(torch.zeros(self.config.num_features)) / self.outliers.median
            self.config.clamp_scale = max(self.config.clamp_scale or 0.0, least)
        self.clamp = clamp_values(
            self.config.clamp_unit,
            float(self.config.clamp_scale or 0.0),
            mean_active,
            self.moments,
            self.outliers.median,
            self.config.num_features,
        )
        tensors = tensors_of(self.part, self.clamp)
        check_tensors(tensors, "the SAE")
        return tensors

    def calibration(self) -> dict[str, Any]:
        """What was seen and measured, as plain data."""
        median = self.outliers.median
        edit = self.moments.norm(self.clamp) if self.moments.tokens else None
        found: dict[str, Any] = {
            "corpora": {
                role: {
                    "documents": rows.documents,
                    "rows": rows.rows,
                    "tokens": rows.tokens,
                    "selection_rows": rows.selection_rows,
                    "threshold_rows": len(rows.threshold),
                    "report_rows": len(rows.report),
                }
                for role, rows in self.rows.items()
            },
            "residual_norm_median": median,
            "outlier_tokens_left_out": sum(gathered(self.outliers.dropped)),
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
            found["warnings"] = warnings_of(found)
        if self.topk is not None:
            compared = {role: counts.rates() for role, counts in self.disagreement.items()}
            found["topk"] = {"rule": "threshold", "k": self.sae.k, "tokens": self.topk.tokens} | compared
            found["warnings"] = [approximation_warning(found["topk"]), *found["warnings"]]
        return found

    def _held_out(self, role: str) -> Tensor:
        rows = self.rows[role].report
        found = self._statistics(rows, f"{role}: report", moments=self.faithful and role == "forget")
        if self.topk is not None:
            self.disagreement[role] = self._disagreement(self.topk, rows, f"{role}: disagreement")
        return found

    def _topk_thresholds(self) -> Tensor | None:
        """Thresholds that stand for the features of a topk SAE `[N]`; None for other SAEs, which have their own."""
        if self.sae.architecture != "topk":
            return None
        self.topk = TopKThresholds(self.sae, self.config.feature_ids or [])
        for role, rows in self.rows.items():
            title = f"{role}: thresholds of features"
            for batch in self.run(rows.again, title, len(rows.again), {"topk": self.topk}):
                self.topk.add(batch.residual[content_tokens(batch, self.config)])
        self.topk.restore(joined(gathered(self.topk.state())))
        return self.topk.thresholds()

    def _disagreement(self, topk: TopKThresholds, rows: list[list[int]], title: str) -> Disagreement:
        """Where the thresholds of a topk SAE and the SAE itself differ."""
        found, threshold = Disagreement.none(self.config.num_features), torch.tensor(self.config.threshold)
        for batch in self.run(rows, title, len(rows)):
            tokens = batch.residual[content_tokens(batch, self.config)]
            fires = [
                read_batch(batch, encoder, self.config).statistics > threshold for encoder in (topk.true, self.encoder)
            ]
            found = found.plus(Disagreement.of(topk.true(tokens) > 0, self.encoder(tokens) > 0, *fires))
        return Disagreement(**summed(found._asdict()))

    def _statistics(self, rows: list[list[int]], title: str, moments: bool = False) -> Tensor:
        values = torch.zeros(len(rows))
        parts: dict[str, Tensor | Stateful] = {"values": values} | ({"moments": self.moments} if moments else {})
        for batch in self.run(rows, title, len(rows), parts):
            reading = read_batch(batch, self.encoder, self.config)
            values[batch.index] = reading.statistics
            if moments:
                self.moments.add(reading.hot_activations[self.outliers.usual(reading.hot_norms)])
        if moments:
            self.moments.restore(summed(self.moments.state()))
        return summed({"values": values})["values"]

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
            parts: what is summed over the batches; with them and a `checkpoint_dir` the pass is saved as it goes on.
        """
        checkpoint = None if parts is None else self.checkpoint
        parts = {"outliers": self.outliers, **(parts or {})}
        start = Standing() if checkpoint is None else checkpoint.restore(title, parts)
        met = not start.done

        def digest() -> str | None:
            return rows.digest.hexdigest() if isinstance(rows, Rows) else None

        def wanted(number: int) -> bool:
            nonlocal met
            if number == start.done - 1 and not start.finished:
                start.check(digest())
                met = True
            return number >= start.done and (is_mine(number) or self.outliers.median is None)

        hidden, done, unsaved = not self.plan.progress or process_index() > 0, start.done, 0
        size = self.plan.batch_size
        with tqdm(total=total, desc=title, unit="row", disable=hidden) as bar:
            for batch in unguarded_residuals(self.model, rows, self.config.layer, size, wanted):
                yield batch
                done, unsaved = batch.number + 1, unsaved + 1
                bar.update(max(0, batch.number * size + len(batch.index) - bar.n))
                if checkpoint is not None and unsaved >= EVERY and self.outliers.median is not None:
                    checkpoint.save(title, Standing(done, False, digest()), parts)
                    unsaved = 0
        if start.finished or not met:
            start.check(digest() if start.finished else "")
        elif checkpoint is not None and self.outliers.median is not None:
            checkpoint.save(title, Standing(done, True, digest()), parts)
