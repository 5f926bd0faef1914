"""Check that an SAE fits a model: width and layer."""

from torch import nn

from sae_unlearn.backbone.layers import text_config
from sae_unlearn.checks import check_integer
from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SparseAutoencoder


def check_sae(sae: SparseAutoencoder, model: nn.Module, layer: int | None) -> int:
    """Return the 0-based layer of `model` whose output this SAE reads.

    Raises:
        UnlearnError: If the SAE has another width, is of another layer, or its layer is not known.
    """
    if not isinstance(sae, SparseAutoencoder):
        raise UnlearnError(f"sae: expected a SparseAutoencoder, got {type(sae).__name__}.")
    width, depth = text_config(model).hidden_size, text_config(model).num_hidden_layers
    name = type(model).__name__
    if sae.d_in != width:
        raise UnlearnError(
            f"The SAE has d_in={sae.d_in}, but {name} has hidden size {width}. Pass an SAE trained on this model."
        )
    chosen = sae.layer if layer is None else layer
    if chosen is None:
        raise UnlearnError("The layer of the SAE is unknown. Pass `layer=`, the 0-based decoder layer that it reads.")
    if layer is not None and sae.layer is not None and layer != sae.layer:
        raise UnlearnError(
            f"layer={layer}, but the SAE reads the output of layer {sae.layer}. Leave `layer` out, or pass an SAE "
            f"trained on layer {layer}."
        )
    return check_integer("layer", chosen, 0, depth - 1)
