"""Take knowledge out of a language model with sparse autoencoders."""

from sae_unlearn.guardrail import (
    Firing,
    GuardrailError,
    GuardrailNotReady,
    SAEGuardrailConfig,
    record_firings,
)
from sae_unlearn.version import __version__


__all__ = [
    "Firing",
    "GuardrailError",
    "GuardrailNotReady",
    "SAEGuardrailConfig",
    "__version__",
    "record_firings",
]
