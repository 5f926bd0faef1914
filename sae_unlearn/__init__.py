"""Take knowledge out of a language model with sparse autoencoders."""

from sae_unlearn.guardrail import (
    Firing,
    GuardrailError,
    GuardrailNotReady,
    SAEGuardrailConfig,
    attach_guardrail,
    detach_guardrail,
    fit_guardrail,
    record_firings,
)
from sae_unlearn.sae import SAEFormatError, SAESlice, SparseAutoencoder
from sae_unlearn.version import __version__


__all__ = [
    "Firing",
    "GuardrailError",
    "GuardrailNotReady",
    "SAEFormatError",
    "SAEGuardrailConfig",
    "SAESlice",
    "SparseAutoencoder",
    "__version__",
    "attach_guardrail",
    "detach_guardrail",
    "fit_guardrail",
    "record_firings",
]
