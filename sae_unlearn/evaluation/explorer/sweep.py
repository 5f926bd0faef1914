"""What a sweep over doses and thresholds found: points of loss and firing, which can be kept, and known again."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_unlearn.checks import check_is
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.files.atomic import write_whole
from sae_unlearn.guardrail import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig


@dataclass(frozen=True)
class SweepPoint:
    """The guardrail at one setting.

    Attributes:
        setting: the threshold, or the dose in multiples of the guardrail's own; at 0 the features are set to 0.
        change: by role, the mean change of the loss over texts, nats per token.
        fires: by role, the share of rows on which the gate fires.
    """

    setting: float
    change: dict[str, Estimate]
    fires: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """What `sweep_guardrail` measured.

    Attributes:
        doses: at the guardrail's threshold.
        thresholds: at the guardrail's dose.
        base_loss: by role, the mean loss without it, nats per token.
        guardrail: layer, features and threshold of what was swept.
    """

    doses: tuple[SweepPoint, ...]
    thresholds: tuple[SweepPoint, ...]
    base_loss: dict[str, float]
    guardrail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON."""
        target = Path(path)
        write_whole(target, json.dumps(self.to_dict(), indent=1) + "\n")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sweep":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            doses, thresholds = (tuple(map(_point, stored[name])) for name in ("doses", "thresholds"))
            base = {str(role): float(loss) for role, loss in stored["base_loss"].items()}
            return cls(doses, thresholds, base, dict(stored["guardrail"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no sweep that this package wrote: {error!r}.") from error

    def check_is_of(self, config: SAEGuardrailConfig) -> None:
        """Raise unless it is a sweep of this guardrail.

        Raises:
            UnlearnError: naming what differs.
        """
        check_is(config, SAEGuardrailConfig, "config")
        mine = about(config)
        wrong = [name for name in mine if self.guardrail.get(name) != mine[name]]
        if wrong:
            raise GuardrailError(
                f"The sweep is of another guardrail: {wrong[0]} is {self.guardrail.get(wrong[0])} there and "
                f"{mine[wrong[0]]} here; measure it again."
            )


def about(config: SAEGuardrailConfig) -> dict[str, Any]:
    """What a sweep knows its guardrail by again."""
    return {"layer": config.layer, "feature_ids": config.feature_ids, "threshold": config.threshold}


def _point(stored: dict[str, Any]) -> SweepPoint:
    change = {str(role): Estimate(**found) for role, found in stored["change"].items()}
    return SweepPoint(float(stored["setting"]), change, {str(r): float(v) for r, v in stored["fires"].items()})
