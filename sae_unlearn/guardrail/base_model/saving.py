"""`save_pretrained` of a transformers model that carries a guardrail, outside of a `PeftModel`.

`merge_and_unload()` of a LoRA on a guarded model and `get_base_model()` give such a model, and so does every model of
transformers inside of it that holds the guarded layer, such as the backbone. Its weights are saved without the
guardrail's, which no loader would restore, with a warning.
"""

import warnings
from functools import partial
from typing import Any

from torch import nn

from sae_unlearn.backbone.private_api import has_loaded_adapters, unsaved
from sae_unlearn.guardrail.tuner_layer import GuardrailTunerLayer


def watch_saving(model: nn.Module, layer: nn.Module) -> None:
    """Have `save_pretrained` leave guardrails out and warn of it.

    Args:
        model (nn.Module): The model.
        layer (nn.Module): The guarded layer. Each part of the model that holds it is watched, too.
    """
    for part in model.modules():
        if not hasattr(part, "save_pretrained") or _watched(part) is not None:
            continue
        if any(module is layer for module in part.modules()):
            # A partial in the instance: it is copied and pickled with the model, and refers to the copy then.
            part.save_pretrained = partial(_save_base, part, part.__dict__.get("save_pretrained"))  # type: ignore[assignment]


def stop_watching(model: nn.Module) -> None:
    """Give `model` and its parts the `save_pretrained` back that they had."""
    for part in model.modules():
        watched = _watched(part)
        if watched is not None:
            earlier = watched.args[1]
            del part.__dict__["save_pretrained"]
            if earlier is not None:
                part.__dict__["save_pretrained"] = earlier


def _watched(model: nn.Module) -> "partial[Any] | None":
    found = model.__dict__.get("save_pretrained")
    return found if isinstance(found, partial) and found.func is _save_base else None


def _save_base(model: Any, earlier: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    save = earlier or partial(type(model).save_pretrained, model)
    guards = {name: m for name, m in model.named_modules() if isinstance(m, GuardrailTunerLayer) and m.guard_config}
    if not guards or has_loaded_adapters(model):  # transformers saves adapters alone then
        return save(save_directory, *args, **kwargs)
    names = sorted({name for guard in guards.values() for name in guard.guard_config})
    warnings.warn(
        f"{save_directory}: the base model is saved without its guardrail {', '.join(map(repr, names))}, and will come "
        "back unguarded. Save the guardrail by the `PeftModel`, and attach it after loading.",
        stacklevel=2,
    )
    ours = [key for key in model.state_dict() if any(key.startswith(f"{guard}.") for guard in guards)]
    with unsaved(model, ours):
        return save(save_directory, *args, **kwargs)
