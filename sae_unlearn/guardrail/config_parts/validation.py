"""Checks of the fields of a `SAEGuardrailConfig`, of each alone and of combinations."""

from collections import Counter
from typing import Any

from sae_unlearn.checks import check_bool, real
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.fields import ConfigFields, settle
from sae_unlearn.guardrail.config_parts.values import (
    LARGEST_COUNT,
    LARGEST_ID,
    check_choice,
    check_integer,
    check_mapping,
    check_real,
)
from sae_unlearn.version import __version__


def check_threshold(threshold: float, config: ConfigFields, percentile: float | None) -> None:
    """Raise if the gate could never fire at this threshold, or would always.

    Args:
        threshold (float): The threshold.
        config (ConfigFields): The config.
        percentile (float or None): Percentile of the retain rows that gave it. None for a threshold set by hand.

    Raises:
        GuardrailError: If it is out of range. The message names the range.
    """
    low, high = config.threshold_bounds
    if low <= threshold < high:
        return
    if percentile is None:
        raise GuardrailError(
            f"threshold={threshold}: expected a number in [{low}, {high}), the range of the statistic "
            f"{config.statistic!r}. Pass one inside it."
        )
    raise GuardrailError(
        f"threshold={threshold}: the {percentile}th percentile of the retain rows' {config.statistic!r} statistic is "
        f"outside [{low}, {high}). The features are nearly always active. Pass more or other retain text, or "
        "fewer features (num_features)."
    )


FORMAT_VERSION = 3

LONGEST_REFUSAL = 512  # tokens
LONGEST_REFUSAL_TEXT = 8192  # characters
# Features times width: 1 GiB of weights, about a thousand times the size for a topic.
LARGEST_SLICE = 2**27

# Log-likelihood ratios in quarters of a nat, so that their sums are exact in float32.
EVIDENCE_STEP, LARGEST_EVIDENCE = 0.25, 16.0
DRIFT_STEP = 1 / 16  # of the windowed statistic, whose scores are quarters

CHOICES = {
    "statistic": ("ratio", "windowed"),
    "gate_scope": ("sequence", "prefix"),
    "clamp_mode": ("fired", "all"),
    "action": ("clamp", "record", "refuse"),
}


def check_config(config: ConfigFields, always: bool = False) -> None:
    """Raise GuardrailError unless every field has a valid value, and put lists of ids into one form.

    Args:
        config (ConfigFields): The config.
        always (bool, *optional*, defaults to False): Accept a threshold at which the gate fires on every text.
    """
    check_version(config.format_version)
    check_choices(config)
    _check_names(config)
    _check_features(config)
    _check_evidence(config)
    _check_windowed(config)
    check_numbers(config, always)
    _check_messages(config)
    check_refusal(config)
    _check_strings(config)


def check_choices(config: ConfigFields) -> None:
    """Raise unless every field of `CHOICES` has one of its values."""
    for name, allowed in CHOICES.items():
        check_choice(name, getattr(config, name), allowed)


def _check_names(config: ConfigFields) -> None:
    for name in ("sticky", "init_weights"):
        check_bool(name, getattr(config, name), GuardrailError)
    if str(getattr(config.task_type, "value", config.task_type)) != "CAUSAL_LM":
        raise GuardrailError(f"task_type={config.task_type!r}: expected 'CAUSAL_LM'. Leave it out.")


def check_numbers(config: ConfigFields, always: bool = False) -> None:
    """Raise unless every number is in its range. With `always`, a threshold may be below its range."""
    check_integer("layer", config.layer, 0, (config.base_model.num_layers or LARGEST_COUNT) - 1)
    if config.threshold is not None:
        lowest, highest = config.threshold_bounds
        check_real("threshold", config.threshold)
        if (config.threshold < lowest and not always) or config.never_fires:
            raise GuardrailError(
                f"threshold={config.threshold} is outside [{lowest}, {highest}), the range of statistic="
                f"{config.statistic!r}: the gate would {'always' if config.threshold < lowest else 'never'} fire."
            )
    check_outlier_norm(config)
    if config.clamp_value is not None:
        check_real(
            "clamp_value", config.clamp_value, high=0, fix="Pass its negative: a positive one amplifies the topic."
        )


def _check_features(config: ConfigFields) -> None:
    check_integer("gate_levels", config.gate_levels, 0, LARGEST_ID)
    for name in ("feature_ids", "gate_feature_ids"):
        given = getattr(config, name)
        if given is None or (name == "gate_feature_ids" and not given):
            continue
        if not isinstance(given, (list, tuple)) or not given:
            raise GuardrailError(f"{name}={given!r:.80}: expected a non-empty list of integers.")
        d_sae = (config.sae_source or {}).get("d_sae") if isinstance(config.sae_source, dict) else None
        highest = min(d_sae - 1, LARGEST_ID) if isinstance(d_sae, int) else LARGEST_ID
        settle(config, name, tuple(check_integer(name, i, 0, highest) for i in given))
    ids = [*(config.feature_ids or ()), *(config.gate_feature_ids or ())]
    if len(set(ids)) != len(ids):
        repeated = sorted(i for i, count in Counter(ids).items() if count > 1)
        raise GuardrailError(f"feature_ids={repeated[:8]}: expected each feature once, got these more than once.")
    width = config.base_model.hidden_size
    if config.num_encoded * (width or 1) > LARGEST_SLICE:
        raise GuardrailError(
            f"feature_ids: expected at most {LARGEST_SLICE} weights, got {config.num_encoded} rows of width {width}."
        )


def _check_evidence(config: ConfigFields) -> None:
    values = config.feature_evidence
    if values is None:
        return
    if not isinstance(values, (list, tuple)) or not values:
        raise GuardrailError(f"feature_evidence={values!r:.80}: expected a list of numbers, one for each feature.")
    lowest = -LARGEST_EVIDENCE if config.statistic == "windowed" else EVIDENCE_STEP
    for value in values:
        check_real("feature_evidence", value, lowest, LARGEST_EVIDENCE)
        if value % EVIDENCE_STEP:
            raise GuardrailError(f"feature_evidence={value}: expected steps of {EVIDENCE_STEP}.")
    settle(config, "feature_evidence", tuple(float(value) for value in values))
    if config.num_encoded != len(values):
        raise GuardrailError(
            f"feature_evidence: expected {config.num_encoded} numbers, one for each feature, got {len(values)}."
        )


def _check_windowed(config: ConfigFields) -> None:
    """Raise unless the fields of statistic="windowed" are consistent, and absent for other statistics."""
    if config.statistic != "windowed":
        for name in ("gate_feature_ids", "gate_levels"):
            if getattr(config, name):
                raise GuardrailError(f"{name} goes with statistic='windowed'. Leave it out.")
        return
    if config.gate_levels and config.gate_feature_ids:
        raise GuardrailError(
            f"gate_levels={config.gate_levels}: expected 0 with gate_feature_ids, since the gate reads one of the two. "
            "Fit again."
        )
    if config.tokens.counting != "content" or not config.sticky:
        raise GuardrailError(
            f"statistic='windowed' goes with counting='content' and sticky=True, not with "
            f"counting={config.tokens.counting!r} and sticky={config.sticky}. Set another statistic."
        )
    for name, step in (("bias", EVIDENCE_STEP), ("drift", DRIFT_STEP)):
        value = getattr(config.statistic_kwargs, name)
        if value % step:
            raise GuardrailError(f"statistic_kwargs.{name}={value}: expected a multiple of {step:g}. Fit again.")


def check_outlier_norm(config: ConfigFields) -> None:
    """Raise unless a token of usual norm can be hot."""
    if config.tokens.outlier_norm is None:
        return
    calibration = config.calibration if isinstance(config.calibration, dict) else {}
    usual = real(calibration.get("residual_norm_median")) or 0.0
    fix = "Raise it: the usual norm of a token is the bound." if usual > 0 else ""
    check_real("tokens.outlier_norm", config.tokens.outlier_norm, above=max(usual, 0.0), fix=fix)


def _check_messages(config: ConfigFields) -> None:
    weight = config.statistic_kwargs.message_weight
    if weight != 1 and not (config.statistic == "windowed" and config.tokens.boundary_ids):
        raise GuardrailError(
            f"statistic_kwargs.message_weight={weight}: expected 1, unless statistic='windowed' and "
            "tokens.boundary_ids names the ends of messages. Leave it out."
        )
    if not config.tokens.boundary_ids:
        return
    if config.tokens.counting != "content" or not config.sticky:
        raise GuardrailError(
            f"tokens.boundary_ids goes with counting='content' and sticky=True, not with "
            f"counting={config.tokens.counting!r} and sticky={config.sticky}. Set boundary_ids=None."
        )


def check_refusal(config: ConfigFields) -> None:
    """Raise unless the fields of action="refuse" are consistent."""
    if isinstance(config.refusal, str) and len(config.refusal) > LONGEST_REFUSAL_TEXT:
        raise GuardrailError(
            f"refusal: expected at most {LONGEST_REFUSAL_TEXT} characters, got {len(config.refusal)}. Shorten the "
            "message."
        )
    if config.refusal_ids is not None:
        if not isinstance(config.refusal_ids, (list, tuple)) or not 0 < len(config.refusal_ids) <= LONGEST_REFUSAL:
            raise GuardrailError(f"refusal_ids={config.refusal_ids!r:.60}: expected 1 to {LONGEST_REFUSAL} token ids.")
        ids = tuple(check_integer("refusal_ids", i, 0, LARGEST_COUNT) for i in config.refusal_ids)
        settle(config, "refusal_ids", ids)
    if config.action == "refuse" and not config.refusal_ids:
        raise GuardrailError("action='refuse' needs `refusal_ids`, the message that is answered; see `set_action`.")
    if config.action == "refuse" and not config.sticky:
        raise GuardrailError("action='refuse' needs sticky=True; else a refusal may end in the middle.")


def _check_strings(config: ConfigFields) -> None:
    for name in ("base_model_name_or_path", "revision", "sae_unlearn_version", "refusal"):
        value = getattr(config, name)
        if value is not None and not isinstance(value, str):
            raise GuardrailError(f"{name}={value!r} must be a text or None.")
    for name in ("sae_source", "calibration"):
        check_mapping(name, getattr(config, name))
    if config.auto_mapping is not None:
        raise GuardrailError("`auto_mapping` names classes to import; a guardrail's config may not hold it.")


def check_version(version: Any) -> None:
    """Raise unless this version of the package reads artifacts of that format."""
    if type(version) is int and 0 < version < FORMAT_VERSION:
        raise GuardrailError(
            f"format_version={version}: expected {FORMAT_VERSION}, got the layout of an earlier development version. "
            "Fit the guardrail again with this version."
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise GuardrailError(
            f"format_version={version!r}: this sae_unlearn ({__version__}) reads version {FORMAT_VERSION}; install a "
            "newer sae_unlearn."
        )
