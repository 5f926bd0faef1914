"""What `fit_guardrail` was asked for, checked and made whole before anything is read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.identity import fingerprint
from sae_unlearn.backbone.layers import bare_model, find_decoder_layers
from sae_unlearn.backbone.tokens import begins_bare, message_boundary_ids, special_token_ids
from sae_unlearn.cards.provenance import public_source
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.attach import free_name
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_validation import BY_MESSAGE, check_real
from sae_unlearn.guardrail.fit.selection import IMPORTANCE
from sae_unlearn.guardrail.fit.topk_approximation import check_topk
from sae_unlearn.guardrail.runtime.refusal import message_ids
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.compatibility import check_sae


DEFAULT_CLAMP_SCALES = {"feature": 16.0, "residual": 0.5, "absolute": 500.0}
DEFAULT_NUM_FEATURES = 40
DEFAULT_RATIO_PERCENTILE = 99.0
DEFAULT_THRESHOLD_PERCENTILE = 97.5
DEFAULT_MARGIN = 0.25
DEFAULT_MIN_TOKENS = 8
DEFAULT_EVIDENCE = "log_ratio"
DEFAULT_WINDOWS = {"ratio_or_window": 16}  # of the others, the config's own
PUBLISHED_CLAMP_VALUE = -500.0
PUBLISHED_NUM_FEATURES = 20
PUBLISHED_RATIO_PERCENTILE = 95.0
PUBLISHED_THRESHOLD_PERCENTILE = 95.0


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
    by_message: bool
    """Whether messages are to be judged by themselves, too."""
    usual_dose: bool
    """Whether the dose is the default one."""
    begins_bare: bool
    """Whether plain texts begin without a special token."""
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
    num_features: int | None,
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
    evidence: str | None,
    gate_scope: str,
    sticky: bool,
    action: str,
    refusal: str | None,
    window: int | None,
    window_weight: float,
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
    if evidence is None:
        by_hand = faithful or threshold is not None or forget is None or retain is None
        evidence = "any" if by_hand else DEFAULT_EVIDENCE
    if faithful and evidence != "any":
        raise GuardrailError(f"evidence={evidence!r}: preset='faithful' counts every hot token as 1.")
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
    if num_features is None:
        num_features = PUBLISHED_NUM_FEATURES if faithful else DEFAULT_NUM_FEATURES
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
    by_message = chat_template and tokenizer is not None and statistic in BY_MESSAGE and sticky and not faithful
    if window is None:
        window = DEFAULT_WINDOWS.get(statistic, SAEGuardrailConfig.window)
    config = SAEGuardrailConfig(
        layer=layer,
        num_features=0 if features is not None else num_features,
        feature_ids=list(features) if isinstance(features, Iterable) else features,
        statistic=statistic,
        evidence=evidence,
        gate_scope=gate_scope,
        sticky=sticky,
        threshold=threshold,
        window=window,
        window_weight=window_weight,
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
        message_boundary_ids=message_boundary_ids(tokenizer) or None if by_message and tokenizer is not None else None,
        hidden_size=sae.d_in,
        num_layers=len(find_decoder_layers(bare).layers),
        base_model_name_or_path=getattr(bare, "name_or_path", None) or None,
        base_fingerprint=fingerprint(bare, layer),
        sae_source=_provenance(sae),
    )
    config.refusal_compared = refusal is not None  # type: ignore[misc]  # a ClassVar only so that it is no field
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
        by_message=by_message,
        usual_dose=usual_dose,
        begins_bare=begins_bare(tokenizer, config.special_token_ids or []),
        read={"max_length": max_length, "chat_template": chat_template, "text_column": text_column},
        max_held_out=max_held_out,
        batch_size=batch_size,
        store_probe=store_probe,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
    )


def _provenance(sae: SparseAutoencoder) -> dict[str, Any]:
    """The SAE's source, fit to be published, and its number of features."""
    return public_source(sae.source) | {"d_sae": sae.d_sae}


def _check_corpora(config: SAEGuardrailConfig, forget: Any, retain: Any, topk: str | None) -> None:
    missing = [name for name, corpus in (("forget", forget), ("retain", retain)) if corpus is None]
    if config.feature_ids is None and missing:
        raise GuardrailError(
            f"Selecting features needs `forget` and `retain`; {missing} not given. Or give `features`."
        )
    if config.evidence == "log_ratio" and missing:
        raise GuardrailError(f"evidence='log_ratio' is counted on `forget` and `retain`; {missing} not given.")
    if config.threshold is None and retain is None:
        raise GuardrailError("Calibrating the threshold needs `retain` text; pass it, or give `threshold`.")
    if config.clamp_unit != "absolute" and forget is None:
        raise GuardrailError(
            f"clamp_unit={config.clamp_unit!r} is measured on `forget` text; pass it, or give clamp_value, e.g. -500.0."
        )
    if topk is not None and forget is None and retain is None:
        raise GuardrailError(f"topk={topk!r} is measured on text; pass `forget` and `retain`.")
