"""What the fields of a `SAEGuardrailConfig` may hold, each alone and with the others."""

import math
import re
import struct
from collections import Counter
from typing import Any

import torch

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_fields import ConfigFields, settle
from sae_unlearn.version import __version__


def check_threshold(threshold: float, config: ConfigFields, percentile: float | None) -> None:
    """Raise if the gate could never fire at this threshold.

    Raises:
        GuardrailError: naming the threshold and the range.
    """
    low, high = config.threshold_bounds
    if low <= threshold < high:
        return
    cause = (
        f"the {percentile}th percentile of the retain rows' {config.statistic!r} statistic is"
        if percentile is not None
        else "it is"
    )
    raise GuardrailError(
        f"threshold={threshold}: {cause} outside [{low}, {high}), where the gate can work. The chosen features are "
        "active on nearly all tokens of those rows: give more or other retain text, fewer features (num_features), a "
        "lower threshold_percentile, or a threshold by hand."
    )


FORMAT_VERSION = 1

# Counts are held in float32, which is exact up to here.
LARGEST_COUNT = 2**24
LARGEST_ID = 2**31 - 1
LONGEST_REFUSAL = 512  # tokens
LONGEST_REFUSAL_TEXT = 8192  # characters
# Features times width: 1 GiB of weights, some thousand times what a topic takes.
LARGEST_SLICE = 2**27

# Log-likelihood ratios in quarters of a nat, so that sums of them are exact in float32, too.
EVIDENCE_STEP, LARGEST_EVIDENCE = 0.25, 16.0

# Statistics that can be taken of each message as well, and those that look back over a window.
BY_MESSAGE = ("ratio", "ratio_or_window")
WINDOWED = ("window", "ratio_or_window")

CHOICES = {
    "statistic": ("ratio", "window", "cusum", "ratio_or_window"),
    "evidence": ("any", "log_ratio"),
    "gate_scope": ("sequence", "prefix"),
    "clamp_mode": ("fired", "all"),
    "clamp_unit": ("feature", "residual", "absolute"),
    "action": ("clamp", "record", "refuse"),
    "counting": ("content", "columns"),
}


def check_config(config: ConfigFields, always: bool = False) -> None:
    """Raise GuardrailError unless every field holds what it may, and put lists of ids into one form.

    Args:
        always: a threshold by which the gate fires on every text is taken, too.
    """
    check_version(config.format_version)
    check_choices(config)
    _check_names(config)
    _check_evidence(config)
    check_numbers(config, always)
    _check_ids(config)
    _check_strings(config)


def check_choices(config: ConfigFields) -> None:
    """Raise unless every field of `CHOICES` is one of them."""
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            raise GuardrailError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}.")


def _check_names(config: ConfigFields) -> None:
    for name in ("sticky", "init_weights"):
        if not isinstance(getattr(config, name), bool):
            raise GuardrailError(f"{name}={getattr(config, name)!r} must be True or False.")
    if str(getattr(config.task_type, "value", config.task_type)) != "CAUSAL_LM":
        raise GuardrailError(f"task_type={config.task_type!r}: a guardrail works on 'CAUSAL_LM' models only.")


def check_numbers(config: ConfigFields, always: bool = False) -> None:
    """Raise unless every number is in its range; with `always`, a threshold may lie below its own."""
    at_least = {"layer": 0, "num_features": 0, "window": 1, "min_tokens": 1}
    for name, low in at_least.items():
        _check_integer(name, getattr(config, name), low, LARGEST_COUNT)
    for name in ("hidden_size", "num_layers"):
        if getattr(config, name) is not None:
            _check_integer(name, getattr(config, name), 1, LARGEST_COUNT)
    if config.num_layers is not None and config.layer >= config.num_layers:
        raise GuardrailError(f"layer={config.layer} is not below num_layers={config.num_layers}; layers count from 0.")
    if config.window < config.min_tokens and config.statistic in WINDOWED:
        raise GuardrailError(f"window={config.window} is below min_tokens={config.min_tokens}; widen the window.")
    if config.threshold is not None:
        lowest, highest = config.threshold_bounds
        check_real("threshold", config.threshold)
        if (config.threshold < lowest and not always) or config.never_fires:
            raise GuardrailError(
                f"threshold={config.threshold} is outside [{lowest}, {highest}), the range of statistic="
                f"{config.statistic!r}: the gate would {'always' if config.threshold < lowest else 'never'} fire."
            )
    check_outlier_norm(config)
    check_real("window_weight", config.window_weight)
    if not 0 < config.window_weight <= 1:
        raise GuardrailError(f"window_weight={config.window_weight} must be above 0 and at most 1.")
    check_real("drift", config.drift)
    # a weak feature's evidence can lie below the drift that the other statistics do not use
    highest = config.hottest if config.evidence == "any" or config.statistic == "cusum" else math.inf
    if not 0 < config.drift < highest:
        raise GuardrailError(
            f"drift={config.drift} must lie between 0 and {highest:g}, between a quiet and a hot text's rate."
        )
    if config.clamp_value is not None:
        check_real("clamp_value", config.clamp_value)
        if config.clamp_value > 0:
            raise GuardrailError(
                f"clamp_value={config.clamp_value} is positive and would amplify the topic; the dose is -c, for "
                f"example {-config.clamp_value}."
            )
    if config.clamp_scale is not None:
        check_real("clamp_scale", config.clamp_scale)
        if config.clamp_scale < 0:
            raise GuardrailError(
                f"clamp_scale={config.clamp_scale} is negative and would amplify the topic; features are clamped to "
                f"minus this many units, so give {-config.clamp_scale}."
            )


def _check_ids(config: ConfigFields) -> None:
    if config.feature_ids is not None:
        if not isinstance(config.feature_ids, (list, tuple)) or not config.feature_ids:
            raise GuardrailError(f"feature_ids={config.feature_ids!r} must be a non-empty list of integers.")
        ids = tuple(_check_integer("feature_ids", i, 0, LARGEST_ID) for i in config.feature_ids)
        settle(config, "feature_ids", ids)
        if len(set(config.feature_ids)) != len(config.feature_ids):
            repeated = sorted(i for i, count in Counter(config.feature_ids).items() if count > 1)
            raise GuardrailError(f"feature_ids holds {repeated[:8]} more than once; name each feature once.")
        if config.num_features not in (0, len(config.feature_ids)):
            raise GuardrailError(
                f"num_features={config.num_features} but feature_ids names {len(config.feature_ids)}; give one of them."
            )
        settle(config, "num_features", len(config.feature_ids))
        d_sae = (config.sae_source or {}).get("d_sae") if isinstance(config.sae_source, dict) else None
        if isinstance(d_sae, int) and max(config.feature_ids) >= d_sae:
            raise GuardrailError(
                f"feature_ids holds {max(config.feature_ids)}, but the SAE in `sae_source` has d_sae={d_sae} "
                f"features, 0 to {d_sae - 1}."
            )
    if config.num_features * (config.hidden_size or 1) > LARGEST_SLICE:
        raise GuardrailError(
            f"num_features={config.num_features} of width {config.hidden_size} are more than {LARGEST_SLICE} weights, "
            "which no guardrail has."
        )
    for name in ("special_token_ids", "message_boundary_ids"):
        settle(config, name, _token_ids(name, getattr(config, name)))
    _check_messages(config)
    check_refusal(config)


def _check_evidence(config: ConfigFields) -> None:
    values = config.feature_evidence
    if values is None:
        return
    if config.evidence == "any":
        raise GuardrailError("feature_evidence goes with evidence='log_ratio'; leave it out.")
    if not isinstance(values, (list, tuple)) or not values:
        raise GuardrailError(f"feature_evidence={values!r} must be a list of numbers, one for each feature.")
    for value in values:
        check_real("feature_evidence", value)
        if not EVIDENCE_STEP <= value <= LARGEST_EVIDENCE or value % EVIDENCE_STEP:
            raise GuardrailError(
                f"feature_evidence holds {value}; it is in steps of {EVIDENCE_STEP} up to {LARGEST_EVIDENCE:g}."
            )
    settle(config, "feature_evidence", tuple(float(value) for value in values))
    number = len(config.feature_ids or []) or config.num_features
    if number != len(values):
        raise GuardrailError(f"feature_evidence holds {len(values)} numbers for {number} features.")


def check_outlier_norm(config: ConfigFields) -> None:
    """Raise unless a token of usual norm can be hot."""
    if config.outlier_norm is None:
        return
    check_real("outlier_norm", config.outlier_norm)
    usual = config.calibration.get("residual_norm_median") if isinstance(config.calibration, dict) else None
    lowest = usual if isinstance(usual, (int, float)) else 0.0
    if not config.outlier_norm > max(lowest, 0.0):
        raise GuardrailError(
            f"outlier_norm={config.outlier_norm} must be above {lowest}, the usual norm of a token; or nothing would "
            "ever be hot."
        )


def _check_messages(config: ConfigFields) -> None:
    if not config.message_boundary_ids:
        return
    needed = {"statistic": BY_MESSAGE, "counting": ("content",), "sticky": (True,)}
    wrong = [f"{name}={getattr(config, name)!r}" for name, fit in needed.items() if getattr(config, name) not in fit]
    if wrong:
        raise GuardrailError(
            f"message_boundary_ids goes with statistic='ratio' or 'ratio_or_window', counting='content' and "
            f"sticky=True, and not with {', '.join(wrong)}; set message_boundary_ids=None."
        )


def check_refusal(config: ConfigFields) -> None:
    """Raise unless the fields of action="refuse" fit together."""
    if isinstance(config.refusal, str) and len(config.refusal) > LONGEST_REFUSAL_TEXT:
        raise GuardrailError(
            f"refusal: expected at most {LONGEST_REFUSAL_TEXT} characters, got {len(config.refusal)}. Shorten the "
            "message."
        )
    if config.refusal_ids is not None:
        if not isinstance(config.refusal_ids, (list, tuple)) or not 0 < len(config.refusal_ids) <= LONGEST_REFUSAL:
            raise GuardrailError(f"refusal_ids must be a list of 1 to {LONGEST_REFUSAL} token ids.")
        ids = tuple(_check_integer("refusal_ids", i, 0, LARGEST_COUNT) for i in config.refusal_ids)
        settle(config, "refusal_ids", ids)
    if config.action == "refuse" and not config.refusal_ids:
        raise GuardrailError("action='refuse' needs `refusal_ids`, the message that is answered; see `set_action`.")
    if config.action == "refuse" and not config.sticky:
        raise GuardrailError("action='refuse' needs sticky=True; else a refusal may end in the middle.")


def _check_strings(config: ConfigFields) -> None:
    if isinstance(config.target_modules, str):
        config.target_modules = {config.target_modules}
    if config.target_modules is not None:
        if not isinstance(config.target_modules, set):
            config.target_modules = set(config.target_modules)
        for name in config.target_modules:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
                raise GuardrailError(f"target_modules holds {name!r}, which is no module name; leave it out.")
    for name in ("base_model_name_or_path", "revision", "sae_unlearn_version", "refusal"):
        value = getattr(config, name)
        if value is not None and not isinstance(value, str):
            raise GuardrailError(f"{name}={value!r} must be a text or None.")
    for name in ("sae_source", "calibration", "base_fingerprint"):
        if getattr(config, name) is not None and not isinstance(getattr(config, name), dict):
            raise GuardrailError(f"{name}={getattr(config, name)!r} must be a mapping.")
    if config.auto_mapping is not None:
        raise GuardrailError("`auto_mapping` names classes to import; a guardrail's config may not hold it.")


def check_version(version: Any) -> None:
    """Raise unless this version of the package reads artefacts of that format."""
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise GuardrailError(
            f"format_version={version!r}: this sae_unlearn ({__version__}) reads versions 1 to {FORMAT_VERSION}; "
            "install a newer sae_unlearn."
        )


def _token_ids(name: str, ids: Any) -> tuple[int, ...] | None:
    """Token ids, each once and in order."""
    if ids is None:
        return None
    if not isinstance(ids, (list, tuple, set)):
        raise GuardrailError(f"{name}={ids!r} must be a list of token ids.")
    return tuple(sorted({_check_integer(name, i, 0, LARGEST_ID) for i in ids}))


def _check_integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise GuardrailError(f"{name}: {value!r} must be an integer >= {low}.")
    if value > high:
        raise GuardrailError(f"{name} is beyond {high}; it must be an integer from {low} to {high}.")
    return value


def check_real(name: str, value: Any) -> None:
    """Raise GuardrailError unless `value` is a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(as_float32(value)) < math.inf:
        raise GuardrailError(f"{name}={value!r} must be a finite number.")


def as_float32(value: float) -> float:
    """`value` as the gate holds it; infinite where that cannot. Code that is being compiled cannot round: there it is
    `value` itself."""
    if torch.compiler.is_compiling():
        return value
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except (OverflowError, struct.error):  # the latter for integers that no float holds
        return math.inf
