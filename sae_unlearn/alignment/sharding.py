"""Which ways of sharding a model the passes of an alignment go with."""

from typing import Any

from sae_unlearn.alignment.errors import AlignmentError


def check_sharding(state: Any) -> None:
    """Passes over entities end amid the model, which skips whatever a way of sharding does after each layer.

    `torch`'s `fully_shard` (FSDP 2) is served: the pass ends after its hook, see `sae_unlearn.backbone.truncation`.
    ZeRO stages 1 and 2 shard gradients and the optimiser's state, and not the layers.

    Args:
        state: of the accelerator.

    Raises:
        AlignmentError: FSDP 1, or ZeRO stage 3.
    """
    if getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", 2) < 2:
        raise AlignmentError("FSDP 1 does not go with passes that end amid the model; set fsdp_version: 2.")
    if getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", 0) > 2:
        raise AlignmentError(
            "ZeRO stage 3 does not go with passes that end amid the model; take stage 2, or FSDP with fsdp_version: 2."
        )
