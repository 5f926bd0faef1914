"""The guarded decoder layers of a vLLM model, and the class that each becomes."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailUnsupported


def find_layers(model: nn.Module, depth: int) -> nn.ModuleList:
    """Return the decoder layers of a model, by their number in the whole model.

    Of a model of text and images only the language model is searched, since a tower may have as many layers. With
    pipeline parallelism, too, vLLM's list has all layers; those of other stages are placeholders.

    Args:
        model (nn.Module): The model of a worker.
        depth (int): Its number of decoder layers.

    Raises:
        GuardrailUnsupported: If the model does not have exactly one list of that length with a decoder layer in it.
    """
    language = getattr(model, "get_language_model", None)  # vLLM's `SupportsMultiModal`
    lists = {
        name: module
        for name, module in (model if language is None else language()).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and not is_elsewhere(module[0], module[-1])
    }
    if len(lists) != 1:
        raise GuardrailUnsupported(
            f"{type(model).__name__}: expected one list of {depth} decoder layers, got {sorted(lists)}. Use a model "
            "class of vLLM that keeps its layers in one list."
        )
    return next(iter(lists.values()))


def is_elsewhere(*layers: nn.Module) -> bool:
    """Return whether all the layers are placeholders for those of another pipeline stage."""
    return all(type(layer).__name__ == "PPMissingLayer" for layer in layers)


def guard_layer(layer: nn.Module, key: int) -> None:
    """Make a decoder layer call the guardrail's operator on what it returns.

    The layer becomes an instance of a subclass, with an ordinary `forward`: torch.compile traces it, and weight
    loaders and LoRA see neither hooks nor new parameters.

    Args:
        layer (nn.Module): The decoder layer.
        key (int): The operator's number for it, see `ops`.
    """
    from sae_unlearn.engines.vllm import ops

    ops.register()
    cls: Any = type(layer)

    class GuardedLayer(cls):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            if isinstance(output, Tensor):
                torch.ops.sae_unlearn.guard_one(output, self.sae_guardrail_key)
            elif isinstance(output, tuple) and len(output) == 2 and all(isinstance(x, Tensor) for x in output):
                torch.ops.sae_unlearn.guard(output[0], output[1], self.sae_guardrail_key)
            else:
                raise GuardrailUnsupported(
                    f"{cls.__name__}: expected a layer that returns a tensor or (hidden_states, residual), got "
                    f"{type(output).__name__}. Use a model class of vLLM that does."
                )
            return output

    GuardedLayer.__name__, GuardedLayer.__qualname__ = f"Guarded{cls.__name__}", f"Guarded{cls.__qualname__}"
    layer.__class__ = GuardedLayer
    layer.sae_guardrail_key = key  # type: ignore[assignment]
