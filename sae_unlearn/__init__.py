"""Take knowledge out of a language model with sparse autoencoders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail import (
    Firing,
    ForgetSet,
    GuardrailError,
    GuardrailNotReady,
    GuardrailStatus,
    SAEGuardrailConfig,
    attach_bundle,
    attach_guardrail,
    detach_guardrail,
    fit_guardrail,
    fit_guardrails,
    guardrail_status,
    list_guardrails,
    push_bundle,
    record_firings,
    save_bundle,
    set_action,
    use_guardrails,
)
from sae_unlearn.sae import SAEFormatError, SAESlice, SparseAutoencoder
from sae_unlearn.version import __version__


if TYPE_CHECKING:
    from sae_unlearn.alignment import (
        AlignmentError,
        Entity,
        EntitySet,
        LabelledEntities,
        SAEAlignmentConfig,
        SAEAlignmentTrainer,
        label_entities,
    )

__all__ = [
    "AlignmentError",
    "Entity",
    "EntitySet",
    "Firing",
    "ForgetSet",
    "GuardrailError",
    "GuardrailNotReady",
    "GuardrailStatus",
    "LabelledEntities",
    "SAEAlignmentConfig",
    "SAEAlignmentTrainer",
    "SAEFormatError",
    "SAEGuardrailConfig",
    "SAESlice",
    "SparseAutoencoder",
    "UnlearnError",
    "__version__",
    "attach_bundle",
    "attach_guardrail",
    "detach_guardrail",
    "fit_guardrail",
    "fit_guardrails",
    "guardrail_status",
    "label_entities",
    "list_guardrails",
    "push_bundle",
    "record_firings",
    "save_bundle",
    "set_action",
    "use_guardrails",
]

# Imported when they are first asked for: they bring in `Trainer`, which whoever runs a guarded model has no use for.
# The guardrail cannot wait, since importing it is what makes its adapters known to PEFT.
_ALIGNMENT = {
    "AlignmentError",
    "Entity",
    "EntitySet",
    "LabelledEntities",
    "SAEAlignmentConfig",
    "SAEAlignmentTrainer",
    "label_entities",
}


def __getattr__(name: str) -> Any:
    if name in _ALIGNMENT:
        return getattr(import_module("sae_unlearn.alignment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
