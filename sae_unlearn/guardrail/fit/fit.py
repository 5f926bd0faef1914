"""`fit_guardrail`: from a forget corpus and a retain corpus to a guardrail, with forward passes only.

Every row of the corpora is run through the model once, up to the guarded layer:

1. selection rows: sums of activations, scores, the N features (see `selection`);
2. rows put aside of both: their statistic under the gate, and the threshold (see `calibration`);
3. report rows, seen by neither: what the gate does to text it was not fitted on.

The published procedure uses all rows for all of it; `preset="faithful"` does that, in two passes.

The end of a fit: all its guardrails are on the model, or none is.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import as_guardrail_error
from sae_unlearn.guardrail.attach import detach_guardrail, place_guardrail
from sae_unlearn.guardrail.fit.options import DEFAULT_MIN_TOKENS, plan_fit
from sae_unlearn.guardrail.fit.passes import FitPasses
from sae_unlearn.guardrail.fit.steps import Fit
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.same_guardrail import warn_of_same_weights, with_these_weights
from sae_unlearn.guardrail.storage.reading import Artefact
from sae_unlearn.sae import SparseAutoencoder


def place_fitted(model: nn.Module, artefacts: Mapping[str, Artefact], passes: Iterable[FitPasses]) -> PeftModel:
    """Put what was fitted on a model, by name, and remove what `passes` had written down.

    If any of that fails or is interrupted, the model is left as it was.
    """
    guarded, placed = model, []
    try:
        for name, artefact in artefacts.items():
            for other in list(with_these_weights(guard_layers(guarded), artefact.config.layer, artefact.tensors))[:1]:
                warn_of_same_weights(other)  # no error, which would lose the fit
            guarded = place_guardrail(guarded, artefact, name)
            placed.append(name)
        for each in passes:
            if each.checkpoint is not None:
                each.checkpoint.remove()
    except BaseException:
        for name in placed:
            detach_guardrail(guarded, name)
        raise
    return guarded


@as_guardrail_error()
def fit_guardrail(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sae: SparseAutoencoder,
    forget: Any = None,
    retain: Any = None,
    *,
    layer: int | None = None,
    num_features: int | None = None,
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
    evidence: str | None = None,
    gate_scope: str = "sequence",
    sticky: bool = True,
    action: str = "clamp",
    refusal: str | None = None,
    window: int | None = None,
    window_weight: float = 0.35,
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
        num_features: N, how many features are guarded; default 40 (20 for the faithful preset, as published).
        ratio_percentile: features below this percentile of the forget/retain ratio are left out; default 99.0 (95.0
            for the faithful preset, as published). Of a narrow SAE, 95 lets features pass that are active on most
            text, and the gate cannot tell the topic (measured in `benchmarks/gates/default_preset.py`).
        threshold_percentile: the threshold is at least this percentile of the statistic over retain rows put aside;
            default 97.5 (95.0 for the faithful preset, as published). Higher ones lie close to the largest statistic of
            a usual corpus, where one odd row may spoil the gate: see the warnings and the curve in `calibration`.
        margin: how far the threshold is moved from there towards the lower quartile of forget rows put aside, where
            that is higher; 0 <= margin < 1, default 0.25 (0.0 for the faithful preset). A topic that stands
            well above other text needs no threshold that just clears the latter.
        features: feature ids, instead of selecting them (zero-shot).
        threshold: the threshold, instead of calibrating it; a share of hot tokens, or nats with
            `evidence="log_ratio"`.
        clamp_scale: the dose in `clamp_unit`s; default 0.5 of "residual": the edit is half of the residual
            stream's norm, whatever the topic and the SAE, and at least twice what setting the features to 0 takes
            away. 16.0 of "feature", and the published 500.0 of "absolute".
        clamp_unit: "feature", "residual" or "absolute"; see `SAEGuardrailConfig`.
        clamp_value: the paper's absolute dose, e.g. -500.0; the same as clamp_unit="absolute", clamp_scale=500.
        clamp_mode: "fired" or "all" features are clamped at a hot token.
        importance: "mean_squared" or "squared_mean"; see `selection`.
        preset: "faithful" for the authors' scores, counting, clamp (-500, all features) and use of rows.
        topk: of a topk SAE, or one with normalised inputs, has to be "threshold": its features are approximated by a
            threshold for each. How often that is wrong is measured, warned about, and kept in
            `calibration["topk"]`; see `topk`.
        statistic, gate_scope, sticky, action, window_weight, drift, min_tokens: the gate's; see `SAEGuardrailConfig`.
        window: tokens of the gate's window; default 64, and 16 for "ratio_or_window".
        evidence: "log_ratio": a token counts as much as the features active there say for the topic, in nats, see
            `selection`; "any": a token counts 1 where a guarded feature is active, as published. Default "log_ratio",
            and "any" where it cannot be counted or would give a number by hand another unit: without one of the
            corpora, with a `threshold`, and in the faithful preset. Where texts begin without BOS, or most rows
            hold a token of outlying norm, `outlier_norm` is set, and such tokens are never hot.
        refusal: the message of action="refuse", which is answered where the gate fires; see `refusal`.
        adapter_name: the guardrail's name on the model.
        chat_template: put texts as a user's turn into the tokenizer's chat template. Do it if the model is deployed so.
        text_column: column of datasets and mappings that holds the text.
        max_length: longer texts are cut into rows of at most this many tokens; `input_ids` are taken as they are.
        batch_size: rows per forward pass; the result does not depend on it, up to rounding.
        max_held_out: documents of each corpus at most that are put aside for the threshold, and for the report; bounds
            memory.
        store_probe: keep the token ids of two forget and two retain rows in the artefact, for `sae-unlearn check`.
            Off by default, since it publishes that much of your text.
        checkpoint_dir: a folder in which the fit writes down every 50 batches where it stands. The same call, once it
            was killed, goes on from there and ends with the same numbers; what it wrote goes when it is done.
        progress: show progress bars.

    Under `accelerate launch` every process is given the same arguments, runs its share of the batches, and ends with
    the same guardrail; a process group has to be up (`accelerate.PartialState()`, or the command line). While a fit
    runs, guardrails that are on the model already are out of force, in all threads.

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
    return place_fitted(model, {plan.name: fit.artefact()}, [fit.passes])
