"""Fields of a `SAEGuardrailConfig` that are read together, as one field each.

The groups are frozen, and a mapping that is assigned to such a field becomes a group. So a running gate sees each
change, which is an assignment to the config.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from sae_unlearn.guardrail.config_parts.values import (
    as_token_ids,
    check_choice,
    check_integer,
    check_keys,
    check_mapping,
    check_real,
)


G = TypeVar("G")
COUNTING = ("content", "columns")
LEAST_VARIANCE = 1e-12
_POSITIVE = {"row_variance": 0.0, "token_variance": LEAST_VARIANCE, "sum_weight": 1e-12, "message_weight": 1e-12}


@dataclass(frozen=True)
class StatisticKwargs:
    """Parameters of the gate's statistic. Each statistic reads its own.

    Raises:
        GuardrailError: If a value has another type or is out of range. The message names the field.
    """

    min_tokens: int = field(
        default=1, metadata={"help": "Shorter sequences are counted as if quiet tokens filled them up to this many."}
    )
    drift: float = field(
        default=0.5, metadata={"help": "Score that leaves the cumulative sum of 'windowed' unchanged."}
    )
    bias: float = field(default=0.0, metadata={"help": "Score of a token without active features in 'windowed'."})
    other_mean: float = field(default=0.0, metadata={"help": "Mean score of other text in 'windowed'."})
    row_variance: float = field(
        default=0.0,
        metadata={"help": "Variance of a row's mean score in 'windowed', the part that stays at any length."},
    )
    token_variance: float = field(
        default=1.0, metadata={"help": "The part that falls with the length: what it is for a single token."}
    )
    sum_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cumulative sum against the mean in 'windowed'."}
    )
    message_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the mean of a message or paragraph against that of the row in 'windowed'."},
    )

    def __post_init__(self) -> None:
        check_integer("statistic_kwargs.min_tokens", self.min_tokens, 1)
        for name in ("drift", "bias", "other_mean", *_POSITIVE):
            check_real(f"statistic_kwargs.{name}", getattr(self, name), _POSITIVE.get(name), fix="Fit again.")


@dataclass(frozen=True)
class TokenRules:
    """Tokens that the gate counts, and tokens that can be hot.

    Raises:
        GuardrailError: If a value has another type or is out of range. The message names the field.
    """

    counting: str = field(
        default="content",
        metadata={
            "help": "'content': tokens the attention mask keeps and that are not special. 'columns': every column of "
            "the batch counts, padding included, and column 0 is never hot (the published counting)."
        },
    )
    special_ids: Sequence[int] | None = field(
        default=None, metadata={"help": "Tokens that are neither hot nor counted nor clamped (BOS, EOS, PAD, ...)."}
    )
    boundary_ids: Sequence[int] | None = field(
        default=None,
        metadata={
            "help": "Tokens that a chat template puts between messages, and with paragraphs those that hold a blank "
            "line. The mean is then taken of each message or paragraph, too, and its largest value counts."
        },
    )
    outlier_norm: float | None = field(
        default=None,
        metadata={
            "help": "A token whose residual stream has a larger norm is never hot: many features are active there on "
            "any text. None: no token is left out."
        },
    )

    def __post_init__(self) -> None:
        check_choice("tokens.counting", self.counting, COUNTING)
        for name in ("special_ids", "boundary_ids"):
            object.__setattr__(self, name, as_token_ids(f"tokens.{name}", getattr(self, name)))
        if self.outlier_norm is not None:
            check_real("tokens.outlier_norm", self.outlier_norm)

    @property
    def paragraph_ids(self) -> list[int]:
        """Boundaries that are content, so they end paragraphs. Those of a chat template are special tokens."""
        special = {*(self.special_ids or ())}
        return [token for token in self.boundary_ids or () if token not in special]


@dataclass(frozen=True)
class BaseRecord:
    """Base model of the guardrail, compared with the model when it is attached.

    Raises:
        GuardrailError: If a value has another type or is out of range. The message names the field.
    """

    hidden_size: int | None = field(default=None, metadata={"help": "Width of the residual stream."})
    num_layers: int | None = field(default=None, metadata={"help": "Number of decoder layers."})
    fingerprint: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "A few of its weights, to recognize it: of its embedding, norms and matrices."},
    )

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers"):
            if getattr(self, name) is not None:
                check_integer(f"base_model.{name}", getattr(self, name), 1)
        check_mapping("base_model.fingerprint", self.fingerprint)


def as_group(name: str, kind: type[G], value: Any) -> G:
    """Return the group that a field of the config holds.

    Args:
        name (str): The field.
        kind (type): The group's class.
        value (kind or mapping): The assigned value.

    Raises:
        GuardrailError: If it is neither, or has unknown keys or wrong values.
    """
    if isinstance(value, kind):
        return value
    check_keys(name, value, tuple(each.name for each in fields(kind)))  # type: ignore[arg-type]
    return kind(**value)
