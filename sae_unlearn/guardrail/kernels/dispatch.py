"""Choice of the implementation that guards one decoded token per row.

Triton's kernels on a GPU, Python on a CPU, or torch's operators, which support everything.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.kernels.cpu_step import LARGEST, host_step
from sae_unlearn.guardrail.kernels.interface import Step


def step_for(config: SAEGuardrailConfig, hidden: Tensor, home: torch.device | None) -> Step | None:
    """Return the step that guards the token of `hidden [batch, seq, d_in]`, or None for torch's operators.

    The operators do prompts, other actions, training (the steps have no gradient), weights that are offloaded or not
    in float32, and compiled code, where torch fuses them itself.

    Args:
        config (SAEGuardrailConfig): Config of the guardrail.
        hidden (Tensor): `[batch, seq, d_in]`.
        home (torch.device or None): Device on which all weights of the guardrail are, see `readiness.check_ready`.
    """
    if (
        hidden.shape[1] != 1
        or home != hidden.device
        or torch.compiler.is_compiling()
        or (config.tokens.counting, config.action) != ("content", "clamp")
        or config.tokens.boundary_ids
        or (hidden.requires_grad and torch.is_grad_enabled())
    ):
        return None
    if on_host(hidden):
        return host_step if hidden.shape[0] * config.num_features <= LARGEST else None
    if on_gpu(hidden) and hidden.stride(-1) == 1:
        from sae_unlearn.guardrail.kernels.triton_step import fused_step, works  # imported here, since it needs Triton

        return fused_step if works(hidden.device, hidden.dtype) else None
    return None


def on_host(hidden: Tensor) -> bool:
    """Return True if Python can read the values of `hidden`: on the CPU, not traced, and within float32."""
    return (
        hidden.is_cpu
        and type(hidden) is Tensor
        and hidden.dtype != torch.float64
        and torch._C._get_tracing_state() is None  # as every module checks when it is called
    )


def on_gpu(hidden: Tensor) -> bool:
    """Return True if Triton can run on the device of `hidden`."""
    return hidden.is_cuda and triton_is_here()


@cache
def triton_is_here() -> bool:
    return find_spec("triton") is not None
