"""Fields of a `SAEGuardrailConfig` that its checks read, as a protocol that the checks can import."""

from collections.abc import Sequence
from typing import Any, Protocol

from sae_unlearn.guardrail.config_parts.groups import BaseRecord, StatisticKwargs, TokenRules


class ConfigFields(Protocol):
    """Fields that the checks take, each as in `SAEGuardrailConfig`."""

    layer: int
    feature_ids: Sequence[int] | None
    gate_feature_ids: Sequence[int] | None
    gate_levels: int
    statistic: str
    statistic_kwargs: StatisticKwargs
    tokens: TokenRules
    base_model: BaseRecord
    feature_evidence: Sequence[float] | None
    sticky: bool
    threshold: float | None
    clamp_value: float | None
    action: str
    refusal: str | None
    refusal_ids: Sequence[int] | None
    sae_source: dict[str, Any] | None
    calibration: dict[str, Any] | None
    format_version: int
    task_type: Any
    auto_mapping: Any

    @property
    def num_features(self) -> int: ...

    @property
    def num_encoded(self) -> int: ...

    @property
    def hottest(self) -> float: ...

    @property
    def threshold_bounds(self) -> tuple[float, float]: ...

    @property
    def never_fires(self) -> bool: ...


def settle(config: ConfigFields, name: str, value: Any) -> None:
    """Assign a field in its canonical form, unless it has it already.

    Each assignment is a change, after which a gate checks the config again.
    """
    current = getattr(config, name)
    if repr(current) != repr(value):  # 1.0 equals 1, but is saved differently
        setattr(config, name, value)
