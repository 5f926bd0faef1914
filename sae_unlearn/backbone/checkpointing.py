"""Gradient checkpointing, and the forward hooks of a layer that is checkpointed.

Since transformers 5.23 a decoder layer checkpoints its `forward`, and its hooks run once, outside. Before (read in 5.16
to 5.22), and in models that checkpoint `layer.__call__` themselves, hooks run inside: again in the backward pass, and
with `use_reentrant=True` without gradients.
"""

import torch
import transformers
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sae_unlearn.backbone.private_api import checkpoint_function


HOOKS_OUTSIDE = "__call__" not in vars(GradientCheckpointingLayer)
"""True if this transformers runs a decoder layer's hooks outside of its checkpoint."""

NEEDED = "5.23"
"""First version of transformers with `HOOKS_OUTSIDE`."""


def repeats_hooks(backbone: nn.Module, layer: nn.Module) -> bool:
    """Return True if a forward pass now would run the hooks of `layer` again in its backward pass.

    Args:
        backbone (nn.Module): The module that owns the list of decoder layers.
        layer (nn.Module): One of its decoder layers.
    """
    if not torch.is_grad_enabled():
        return False
    if isinstance(layer, GradientCheckpointingLayer):
        return layer.gradient_checkpointing and layer.training and not HOOKS_OUTSIDE
    return any(getattr(module, "gradient_checkpointing", False) and module.training for module in (backbone, layer))


def is_reentrant(backbone: nn.Module, layer: nn.Module) -> bool:
    """Return True if the checkpoints of `layer` are reentrant or of an unknown kind."""
    for module in (layer, backbone):
        function = checkpoint_function(module)
        if function is not None:
            return bool(getattr(function, "keywords", {}).get("use_reentrant", True))
    return True


def version_needed(argument: str) -> str:
    """Return the message of an error: hooks of this layer do not work under these checkpoints.

    Args:
        argument (str): The argument that sets them, with its value.
    """
    return (
        f"{argument}: expected transformers >= {NEEDED} and layers that it checkpoints, got transformers "
        f"{transformers.__version__}."
    )
