"""Settings of one answer of the playground."""

from dataclasses import dataclass

from sae_unlearn.checks import check_choice, check_integer, check_number
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
        check_integer("max_new_tokens", self.max_new_tokens, 1, LONGEST)
        if self.action is not None:
            check_choice("action", self.action, CHOICES["action"])
        if self.threshold is not None:
            check_number("threshold", self.threshold)
        check_number("dose", self.dose, 0, fix="Pass 1 for the guardrail's own.")
