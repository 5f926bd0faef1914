"""The fields of a `SAEGuardrailConfig` that its checks read, without the class, which runs the checks."""

from collections.abc import Sequence
from typing import Any, Protocol


class ConfigFields(Protocol):
    """What the checks take; each as in `SAEGuardrailConfig`."""

    layer: int
    num_features: int
    feature_ids: Sequence[int] | None
    statistic: str
    evidence: str
    feature_evidence: Sequence[float] | None
    outlier_norm: float | None
    sticky: bool
    threshold: float | None
    window: int
    window_weight: float
    drift: float
    min_tokens: int
    clamp_value: float | None
    clamp_scale: float | None
    action: str
    refusal: str | None
    refusal_ids: Sequence[int] | None
    counting: str
    special_token_ids: Sequence[int] | None
    message_boundary_ids: Sequence[int] | None
    hidden_size: int | None
    num_layers: int | None
    sae_source: dict[str, Any] | None
    calibration: dict[str, Any] | None
    target_modules: set[str] | list[str] | str | None
    format_version: int
    task_type: Any
    auto_mapping: Any

    @property
    def hottest(self) -> float: ...

    @property
    def threshold_bounds(self) -> tuple[float, float]: ...

    @property
    def never_fires(self) -> bool: ...


def settle(config: ConfigFields, name: str, value: Any) -> None:
    """Assign a field in its one form. Not if it has it: each assignment is a change, for which a gate checks again."""
    current = getattr(config, name)
    if repr(current) != repr(value):  # 1.0 equals 1, and is not saved as it
        setattr(config, name, value)
