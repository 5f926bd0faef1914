"""When the fused kernels serve: a decoding step on a GPU with Triton, of the usual kind of guardrail."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from sae_unlearn.guardrail.config import SAEGuardrailConfig


def serves(config: SAEGuardrailConfig, hidden: Tensor, encoder: nn.Module, decoder: nn.Module) -> bool:
    """Whether `fused_step` computes what this guardrail is to do with `hidden [batch, seq, d_in]`.

    Everything else is done by torch's operators: prompts, other statistics, training (the kernels have no gradient),
    weights that are offloaded or not in float32, and compiled code, where torch fuses the operators by itself.
    """
    return (
        on_gpu(hidden)
        and hidden.shape[1] == 1
        and hidden.stride(-1) == 1
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and hidden.requires_grad)
        and (config.statistic, config.counting, config.action) == ("ratio", "content", "clamp")
        and not config.message_boundary_ids
        and config.threshold is not None
        and all(
            w.device == hidden.device and w.dtype == torch.float32 and w.is_contiguous()
            for part in (encoder, decoder)
            for w in part.parameters()
        )
    )


def on_gpu(hidden: Tensor) -> bool:
    """Whether Triton can run where `hidden` is."""
    return hidden.is_cuda and triton_is_here()


@cache
def triton_is_here() -> bool:
    return find_spec("triton") is not None
