"""The text of a refusal, for people, and the tokens that are said: do they agree?"""

from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig


def tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer stored with the model's weights on this machine; None without one."""
    name = getattr(model, "name_or_path", None)
    if not name:
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception:  # missing or foreign tokenizers raise several classes: nothing to compare with
        return None


def difference(config: SAEGuardrailConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text of `refusal_ids` if it differs from `refusal`; None if equal or one is not set."""
    if config.refusal is None or not config.refusal_ids:
        return None
    *ids, _ = config.refusal_ids
    if tokenizer(config.refusal, add_special_tokens=False)["input_ids"] == ids:
        return None
    said = str(tokenizer.decode(ids))
    return None if said.split() == config.refusal.split() else said


def compare(config: SAEGuardrailConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise if text and tokens of a refusal differ; else set `refusal_compared` in the config.

    Args:
        tokenizer (PreTrainedTokenizerBase or None): The model's tokenizer; None compares nothing.

    Raises:
        GuardrailError: If they differ. The error has both.
    """
    if tokenizer is None or config.refusal is None or not config.refusal_ids:
        return
    said = difference(config, tokenizer)
    if said is not None:
        raise GuardrailError(
            f"refusal={config.refusal!r:.60}: expected what refusal_ids say, got {said!r:.60}. Fit it again, or change "
            "both by `set_action(..., message=...)`."
        )
    config.refusal_compared = True  # type: ignore[misc]  # a ClassVar, so that it is not a field


def message_in_words(config: SAEGuardrailConfig) -> dict[str, Any]:
    """Return the text and the tokens of a refusal, for a listing; empty without any."""
    found: dict[str, Any] = {}
    if config.refusal is not None:
        compared = "" if config.refusal_compared else "  (not compared with the tokens)"
        found["refusal"] = f'"{config.refusal}"{compared}'
    if config.refusal_ids:
        found["refusal ids"] = ", ".join(map(str, config.refusal_ids))
    return found
