"""Which layer is aligned."""

from torch import nn

from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.errors import AlignmentError
from sae_unlearn.backbone.layers import text_config
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.compatibility import check_sae


def aligned_layer(model: nn.Module, sae: SparseAutoencoder | None, args: SAEAlignmentConfig) -> int:
    """The 0-based layer that the SAE reads, or that the settings name.

    Raises:
        UnlearnError: the two differ, it is not said, or `model` has no such layer.
    """
    if sae is not None:
        return check_sae(sae, model, args.layer)
    depth = text_config(model).num_hidden_layers
    if args.layer is None:
        raise AlignmentError("Without an SAE it has to be said which layer is aligned; set layer= in the config.")
    if args.layer >= depth:
        raise AlignmentError(f"layer={args.layer}, but {type(model).__name__} has layers 0 to {depth - 1}.")
    return args.layer
