"""`set_threshold`: another threshold for a fitted guardrail, from the statistics in its calibration.

With the statistics of n retain rows `R` that set the threshold and of m held-out forget rows `F`:

    max_false_alarms=alpha    tau = the ceil((n + 1)(1 - alpha))-th smallest of R; a fresh retain row exceeds it with
                              probability at most alpha (`conformal_threshold`)
    target_recall=r           tau = just below the ceil(r m)-th largest of F

The first is chosen on rows that the reported rates do not contain. The second is chosen on the forget rows themselves,
so their rate is what was asked for, and only the rate on retain rows is a measurement.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.checks import check_number, reals
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.validation import check_threshold
from sae_unlearn.guardrail.fit.calibration import conformal_threshold, fire_rate, warnings_of
from sae_unlearn.guardrail.manage import config_named


_RANGES: dict[str, dict[str, Any]] = {
    "target_recall": {"above": 0, "high": 1},
    "max_false_alarms": {"above": 0, "below": 1},
    "threshold": {},
}


@dataclass(frozen=True)
class TradeOff:
    """A threshold and what it does on the rows held out from the fit.

    Attributes:
        threshold (float): The gate fires above it.
        recall (dict): Share of forget rows on which it fires, with `n`, `low` and `high` of the 95 % interval.
        false_alarms (dict): The same of retain rows.
        asked (dict): What it was chosen by, e.g. `{"target_recall": 0.9}`; empty if it was given.
    """

    threshold: float
    recall: dict[str, Any]
    false_alarms: dict[str, Any]
    asked: dict[str, float]

    def __str__(self) -> str:
        def words(rate: dict[str, Any]) -> str:
            return f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) of {rate['n']}"

        return (
            f"threshold {self.threshold:.4g}: fires on {words(self.recall)} forget rows and on "
            f"{words(self.false_alarms)} retain rows"
        )


def trade_off(
    calibration: dict[str, Any] | None,
    *,
    target_recall: float | None = None,
    max_false_alarms: float | None = None,
    threshold: float | None = None,
) -> TradeOff:
    """Choose a threshold from a calibration; the equations are above.

    Args:
        calibration (dict[str, Any] or None): Of a fitted guardrail.
        target_recall (float, *optional*): Share of forget rows on which the gate is to fire, above 0 and up to 1.
        max_false_alarms (float, *optional*): Share of other text on which it may fire, between 0 and 1.
        threshold (float, *optional*): The threshold itself.

    Raises:
        GuardrailError: If not exactly one of the three is given, one is out of range, the calibration holds no
            statistics, or they are too few for `max_false_alarms`.
    """
    asked = {"target_recall": target_recall, "max_false_alarms": max_false_alarms, "threshold": threshold}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise GuardrailError(f"{given or 'nothing'} given: expected one of {', '.join(asked)}. Pass exactly one.")
    [(name, value)] = given.items()
    check_number(name, value, **_RANGES[name], error=GuardrailError)
    forget, retain, calibrated_on = (
        torch.tensor(reals((calibration or {}).get(f"statistic_{role}")), dtype=torch.float64)
        for role in ("forget", "retain", "threshold_rows")
    )
    if not len(forget) or not len(retain):
        raise GuardrailError("calibration: expected statistics of rows, got none. Fit with forget and retain texts.")
    if max_false_alarms is not None:
        found = _for_false_alarms(calibrated_on, max_false_alarms)
    elif target_recall is not None:
        found = _for_recall(forget, torch.cat([forget, retain, calibrated_on]), target_recall)
    else:
        found = float(value)
    chosen_by = {} if name == "threshold" else {name: float(value)}
    return TradeOff(found, fire_rate(forget, found), fire_rate(retain, found), chosen_by)


def _for_false_alarms(calibrated_on: Tensor, alpha: float) -> float:
    found = conformal_threshold(calibrated_on, alpha)
    if found is None:
        raise GuardrailError(
            f"max_false_alarms={alpha}: expected at least {math.ceil(1 / alpha) - 1} retain rows in the calibration, "
            f"got {len(calibrated_on)}. Fit with more retain text, or pass a larger share."
        )
    return found


def _for_recall(forget: Tensor, everything: Tensor, recall: float) -> float:
    least = float(forget.sort(descending=True).values[math.ceil(recall * len(forget)) - 1])
    below = everything[everything < least]
    return (least + float(below.max())) / 2 if len(below) else least - 1e-6


def with_trade_off(config: SAEGuardrailConfig, chosen: TradeOff) -> dict[str, Any]:
    """The calibration that `config` has with another threshold; warnings of the old one are replaced.

    Raises:
        GuardrailError: If the threshold is none that the gate's statistic can be compared with.
    """
    check_threshold(chosen.threshold, config, None)
    old = config.calibration or {}
    kept = [text for text in old.get("warnings", []) if text not in warnings_of(old)]
    new = old | {
        "threshold": chosen.threshold,
        "threshold_percentile": None,
        "threshold_margin": None,
        "threshold_chosen_by": chosen.asked,
        "fire_rate_forget": chosen.recall,
        "fire_rate_retain": chosen.false_alarms,
    }
    new["warnings"] = kept + warnings_of(new)
    return new


def set_threshold(
    model: nn.Module,
    name: str | None = None,
    *,
    target_recall: float | None = None,
    max_false_alarms: float | None = None,
    threshold: float | None = None,
) -> TradeOff:
    """Set the threshold of a guardrail from the next forward pass on. It is saved, and nothing is fitted.

    Args:
        model (nn.Module): A model with guardrails.
        name (str, *optional*): The guardrail's adapter name. Not needed if there is one.
        target_recall (float, *optional*): Share of held-out forget rows on which the gate is to fire.
        max_false_alarms (float, *optional*): Share of other text on which it may fire.
        threshold (float, *optional*): The threshold itself.

    Returns:
        `TradeOff`: The threshold, and the rates on held-out rows.

    Raises:
        GuardrailError: If the guardrail does not exist, not exactly one of the three is passed, or the calibration
            lacks the statistics. Nothing is changed then.

    Example:

    ```python
    print(set_threshold(guarded, max_false_alarms=0.01))
    ```
    """
    config = config_named(name, model)
    if threshold is not None and not (config.calibration or {}).get("statistic_forget"):
        check_threshold(threshold, config, None)
        config.threshold = float(threshold)
        nothing = {"rate": math.nan, "n": 0, "low": 0.0, "high": 1.0}
        return TradeOff(float(threshold), nothing, nothing, {})
    chosen = trade_off(
        config.calibration, target_recall=target_recall, max_false_alarms=max_false_alarms, threshold=threshold
    )
    calibration = with_trade_off(config, chosen)
    config.threshold, config.calibration = chosen.threshold, calibration
    return chosen
