"""Weights of a guardrail before its own are loaded."""

from torch import nn

from sae_unlearn.backbone.layers import execution_device
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.weights import GuardrailDecoder, GuardrailEncoder


def new_weights(config: SAEGuardrailConfig, decoder_layer: nn.Module) -> tuple[GuardrailEncoder, GuardrailDecoder]:
    """Return the modules of a guardrail on its layer's device.

    They are empty (NaN), or random without `init_weights`.

    Args:
        config (SAEGuardrailConfig): The guardrail's config.
        decoder_layer (nn.Module): The layer that it guards.
    """
    n, d_in = config.num_features, config.width
    encoder, decoder = GuardrailEncoder(d_in, config.num_encoded), GuardrailDecoder(d_in, n)
    if not config.init_weights:
        nn.init.normal_(encoder.weight, std=d_in**-0.5)
        decoder.weight.data.copy_(encoder.weight[:n])
        nn.init.zeros_(encoder.bias), nn.init.zeros_(encoder.threshold)
        nn.init.constant_(decoder.clamp, -1.0)
    device = next((p.device for p in decoder_layer.parameters() if p.device.type != "meta"), None)
    device = execution_device(decoder_layer) if device is None else device
    if device is not None and not any(p.is_meta for p in encoder.parameters()):
        encoder.to(device), decoder.to(device)
    return encoder, decoder
