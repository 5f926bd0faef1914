"""Strings of a guardrail's config that are shown on its card, where markup would be carried out."""

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.errors import GuardrailError


_MARKUP = frozenset("<>`")


def check_plain_text(config: SAEGuardrailConfig) -> None:
    """Raise if a string that goes on the card holds markup or control characters; no fit writes such.

    Raises:
        GuardrailError: naming the field.
    """
    shown = {"base_model_name_or_path": config.base_model_name_or_path}
    shown |= {f"sae_source[{key!r}]": value for key, value in (config.sae_source or {}).items()}
    warnings = (config.calibration or {}).get("warnings")
    shown |= {
        f"calibration warning {i}": value for i, value in enumerate(warnings if isinstance(warnings, list) else [])
    }
    for name, value in shown.items():
        if isinstance(value, str) and (not value.isprintable() or _MARKUP.intersection(value)):
            raise GuardrailError(
                f"{name}={value[:80]!r} holds markup or control characters; this guardrail was not written by a fit."
            )
