"""`FitPlan`: the checked and completed arguments of `fit_guardrail`, made before any text is read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.blank_lines import blank_line_ids
from sae_unlearn.backbone.identity import fingerprint
from sae_unlearn.backbone.layers import bare_model, find_decoder_layers
from sae_unlearn.backbone.tokens import begins_bare, message_boundary_ids, special_token_ids
from sae_unlearn.cards.provenance import public_source
from sae_unlearn.checks import check_number
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.adapter_names import free_name
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.groups import BaseRecord, StatisticKwargs, TokenRules
from sae_unlearn.guardrail.fit.topk_approximation import check_topk
from sae_unlearn.guardrail.gate.packed import check_packable
from sae_unlearn.guardrail.runtime.refusal import message_ids
from sae_unlearn.options.fit import GuardrailFitConfig, filled
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.compatibility import check_sae


class FitPlan(NamedTuple):
    """Checked arguments of a fit. Undescribed fields are those of `GuardrailFitConfig`, completed."""

    model: nn.Module
    """The bare model."""
    tokenizer: PreTrainedTokenizerBase | None
    sae: SparseAutoencoder
    config: SAEGuardrailConfig
    """The guardrail's config as far as it is known before text is read."""
    name: str
    faithful: bool
    given_features: bool
    cross_fitted: bool
    """True if weights and threshold of the gate are fitted on all rows (`statistic="windowed"`)."""
    put_aside: bool
    """True if the rows of the report are given apart from the corpora."""
    gate_reads: str
    num_gate_features: int
    evidence: str
    threshold: float | None
    clamp_unit: str
    clamp_scale: float
    num_features: int
    ratio_percentile: float
    threshold_percentile: float
    margin: float
    importance: str
    by_message: bool
    """True if the gate also decides on each message by itself."""
    paragraphs: bool
    """True if it does on each paragraph, with a weight of their own."""
    usual_dose: bool
    """True if the dose is the default one."""
    begins_bare: bool
    """True if plain texts begin without a special token."""
    read: dict[str, Any]
    """Arguments of `read_corpus`."""
    for_serving: bool
    """True if the threshold is set on joined rows."""
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
    options: GuardrailFitConfig,
) -> FitPlan:
    """Check the arguments of `fit_guardrail` against each other and against the model. Reads no text.

    Raises:
        GuardrailError: If a value does not fit. The message names it and the fix.
    """
    asked = SimpleNamespace(**filled(options, texts=forget is not None and retain is not None))
    if asked.for_serving and getattr(tokenizer, "chat_template", None):
        asked.chat_template = True
    faithful = options.preset == "faithful"
    bare = bare_model(model)
    layer = check_sae(sae, bare, asked.layer)
    check_topk(sae, asked.topk)
    name = free_name(model, asked.adapter_name)
    if asked.action == "refuse" and asked.refusal is None:
        raise GuardrailError("action='refuse': expected a message as refusal, got none. Pass the text of the answer.")
    refusal_ids = None
    if asked.refusal is not None:
        refusal_ids = message_ids(asked.refusal, tokenizer, getattr(bare, "generation_config", None))
    by_message = asked.chat_template and tokenizer is not None
    by_message = by_message and asked.sticky and not faithful
    cross_fitted = asked.statistic == "windowed"
    if cross_fitted and (faithful or asked.topk is not None or not asked.sticky):
        raise GuardrailError(
            "statistic='windowed' goes with sticky=True and without preset='faithful' and topk. Change one of them."
        )
    weighed = asked.evidence == "log_ratio"
    if weighed and asked.threshold is not None:
        check_number("threshold", asked.threshold, 0, error=GuardrailError, fix="Below it the gate always fires.")
    config = SAEGuardrailConfig(
        layer=layer,
        feature_ids=asked.features,
        statistic=asked.statistic,
        statistic_kwargs=StatisticKwargs(min_tokens=asked.min_tokens),
        tokens=TokenRules(
            counting="columns" if faithful else "content",
            special_ids=special_token_ids(tokenizer, bare.config, asked.chat_template),
            boundary_ids=_boundaries(tokenizer, by_message, asked.paragraphs),
        ),
        gate_scope=asked.gate_scope,
        sticky=asked.sticky,
        threshold=None if weighed else asked.threshold,  # its range depends on the evidence: `Fit.choose` sets it
        clamp_value=-float(asked.clamp_scale) if asked.clamp_unit == "absolute" else None,
        clamp_mode=asked.clamp_mode,
        action=asked.action,
        refusal=asked.refusal,
        refusal_ids=refusal_ids,
        base_model=BaseRecord(sae.d_in, len(find_decoder_layers(bare).layers), fingerprint(bare, layer)),
        base_model_name_or_path=getattr(bare, "name_or_path", None) or None,
        sae_source=_provenance(sae),
    )
    if asked.for_serving:
        check_packable(config)
    config.refusal_compared = asked.refusal is not None  # type: ignore[misc]  # a ClassVar, so that it is not a field
    _check_corpora(asked, forget, retain)
    return FitPlan(
        model=bare,
        tokenizer=tokenizer,
        sae=sae,
        config=config,
        name=name,
        faithful=faithful,
        given_features=asked.features is not None,
        cross_fitted=cross_fitted,
        put_aside=False,
        gate_reads=asked.gate_reads,
        num_gate_features=asked.num_gate_features,
        evidence=asked.evidence,
        threshold=asked.threshold,
        clamp_unit=asked.clamp_unit,
        clamp_scale=float(asked.clamp_scale),
        num_features=asked.num_features,
        ratio_percentile=asked.ratio_percentile,
        threshold_percentile=asked.threshold_percentile,
        margin=asked.margin,
        importance=asked.importance,
        by_message=by_message,
        paragraphs=asked.paragraphs,
        usual_dose=options.clamp_scale is None and asked.clamp_value is None,
        begins_bare=begins_bare(tokenizer, [*(config.tokens.special_ids or ())]),
        read={name: getattr(asked, name) for name in ("max_length", "chat_template", "text_column")},
        for_serving=asked.for_serving,
        max_held_out=asked.max_held_out,
        batch_size=asked.batch_size,
        store_probe=asked.store_probe,
        checkpoint_dir=asked.checkpoint_dir,
        progress=asked.progress,
    )


def _boundaries(tokenizer: PreTrainedTokenizerBase | None, by_message: bool, paragraphs: bool) -> list[int] | None:
    """Return the tokens that end messages and paragraphs, or None."""
    if tokenizer is None:
        if paragraphs:
            raise GuardrailError("paragraphs=True: expected a tokenizer, which tells blank lines. Pass it.")
        return None
    found = {*message_boundary_ids(tokenizer)} if by_message else set()
    return sorted(found | {*blank_line_ids(tokenizer)} if paragraphs else found) or None


def _provenance(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return the SAE's source for publication, and its number of features."""
    return public_source(sae.source) | {"d_sae": sae.d_sae}


def _check_corpora(asked: SimpleNamespace, forget: Any, retain: Any) -> None:
    missing = [name for name, corpus in (("forget", forget), ("retain", retain)) if corpus is None]
    if asked.features is None and missing:
        raise GuardrailError(
            f"features=None needs `forget` and `retain`; missing: {missing}. Pass them, or `features`."
        )
    if asked.statistic == "windowed" and missing:
        raise GuardrailError(
            f"statistic='windowed' is fitted on `forget` and `retain`; {missing} not given. Pass both."
        )
    if asked.evidence == "log_ratio" and missing:
        raise GuardrailError(f"evidence='log_ratio' needs `forget` and `retain`; missing: {missing}. Pass them.")
    if asked.threshold is None and retain is None:
        raise GuardrailError("threshold=None is calibrated on `retain`. Pass `retain` text, or `threshold`.")
    if asked.clamp_unit != "absolute" and forget is None:
        raise GuardrailError(
            f"clamp_unit={asked.clamp_unit!r} is measured on `forget`. Pass it, or clamp_value such as -500.0."
        )
    if asked.topk is not None and forget is None and retain is None:
        raise GuardrailError(f"topk={asked.topk!r} is measured on text. Pass `forget` and `retain`.")
