"""Settings of one answer of the playground."""

import math
from dataclasses import dataclass

from sae_unlearn.checks import check_choice
from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail.config_parts.validation import CHOICES


LONGEST = 2048  # tokens of prompt and answer


@dataclass(frozen=True)
class Settings:
    """Settings of the playground.

    Attributes:
        enabled: True if the guardrail is active for the guarded answer.
        action: "clamp", "record" or "refuse"; None keeps the guardrail's own.
        threshold: None keeps the guardrail's own.
        dose: Multiple of the guardrail's own dose.
        max_new_tokens: Tokens of each answer at most.
        chat_template: Whether the prompt is put into the tokenizer's chat template.
    """

    enabled: bool = True
    action: str | None = None
    threshold: float | None = None
    dose: float = 1.0
    max_new_tokens: int = 60
    chat_template: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= LONGEST:
            raise UnlearnError(f"max_new_tokens={self.max_new_tokens}: expected 1 to {LONGEST}. Pass another number.")
        if self.action is not None:
            check_choice("action", self.action, CHOICES["action"])
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UnlearnError(
                f"threshold={self.threshold}: expected a finite number, or None for the guardrail's own."
            )
        if not 0 <= self.dose < math.inf:
            raise UnlearnError(f"dose={self.dose}: expected 0 or more. Pass 1 for the guardrail's own.")
