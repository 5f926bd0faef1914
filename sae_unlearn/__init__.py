"""Take knowledge out of a language model with sparse autoencoders."""

import sys
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sae_unlearn.errors import (
    GuardrailError,
    GuardrailNotReady,
    GuardrailUnsupported,
    SAEFormatError,
    UnlearnError,
)
from sae_unlearn.options.fit import GuardrailFitConfig
from sae_unlearn.version import __version__


def _is_own_command() -> bool:
    """Return True if this process is `sae-unlearn` or `python -m sae_unlearn`."""
    if sys.argv[:1] == ["-m"]:  # the value while Python looks for the module that `-m` names
        arguments = getattr(sys, "orig_argv", [])
        return "sae_unlearn" in arguments[arguments.index("-m") + 1 :][:1] if "-m" in arguments else False
    return PurePath(sys.argv[0] if sys.argv else "").stem == "sae-unlearn"


# Importing the guardrail registers its adapter type with PEFT, so `import sae_unlearn` does it at once. This loads
# torch, transformers and peft, which takes seconds, and `sae-unlearn --help` does not need them. Our own command
# therefore registers it in `cli.main`, after it has parsed the arguments; until then the names below load on first use.
if TYPE_CHECKING or not _is_own_command():
    from sae_unlearn.guardrail import (
        AttachedGuardrail,
        Firing,
        GuardrailStatus,
        SAEGuardrailConfig,
        attach_bundle,
        attach_guardrail,
        detach_guardrail,
        enable_guardrails,
        fit_guardrail,
        fit_guardrails,
        guardrail_status,
        list_guardrails,
        push_bundle,
        record_firings,
        save_bundle,
        scout,
        search_guardrail,
        set_action,
        set_threshold,
    )
    from sae_unlearn.sae import SAESlice, SparseAutoencoder

if TYPE_CHECKING:
    from sae_unlearn.alignment import (
        AlignmentError,
        Entity,
        EntitySet,
        LabeledEntities,
        SAEAlignmentConfig,
        SAEAlignmentTrainer,
        label_entities,
    )

__all__ = [
    "AlignmentError",
    "AttachedGuardrail",
    "Entity",
    "EntitySet",
    "Firing",
    "GuardrailError",
    "GuardrailFitConfig",
    "GuardrailNotReady",
    "GuardrailStatus",
    "GuardrailUnsupported",
    "LabeledEntities",
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
    "enable_guardrails",
    "fit_guardrail",
    "fit_guardrails",
    "guardrail_status",
    "label_entities",
    "list_guardrails",
    "push_bundle",
    "record_firings",
    "save_bundle",
    "scout",
    "search_guardrail",
    "set_action",
    "set_threshold",
]

_ALIGNMENT = {  # loaded on first use: they import `Trainer`, which a guarded model does not need
    "AlignmentError",
    "Entity",
    "EntitySet",
    "LabeledEntities",
    "SAEAlignmentConfig",
    "SAEAlignmentTrainer",
    "label_entities",
}
_SAE = {"SAESlice", "SparseAutoencoder"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "alignment" if name in _ALIGNMENT else "sae" if name in _SAE else "guardrail"
    return getattr(import_module(f"sae_unlearn.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
