"""One decoded token per row in two Triton kernels on a GPU.

They compute the same as `SAEGuardrailLayer` does with torch operators, with the same counts: the first kernel the
pre-activations, the second the gate, its next state and the edit. With the cache's own append of that state a guardrail
adds three kernels to a decoding step, and with operators thirty to fifty.

The order of the sums of a row is fixed, so its result does not depend on the batch. The state is that of the operators
bit for bit. A compiler may fuse a product and a sum of `gate.windowed`'s mean, whose last bit can then differ.
"""

import warnings
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import STATE_SIZE, State
from sae_unlearn.guardrail.kernels.selfcheck import first_difference
from sae_unlearn.guardrail.kernels.triton_kernels import encode_kernel, gate_kernel
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


# Tiles: features by width of the residual stream. Few features per program, so that 20 of them use several processors.
ENCODE_TILE = {"TILE_N": 4, "TILE_D": 512}
EDIT_TILE = {"TILE_N": 16, "TILE_D": 256}
FIELDS = {"STATE": STATE_SIZE, **{name.upper(): column for column, name in enumerate(State._fields)}}


def fused_step(
    hidden: Tensor,
    onto: Tensor,
    encoder: Any,
    decoder: Any,
    config: SAEGuardrailConfig,
    tables: ConfigTables,
    ids: Tensor | None,
    mask: Tensor | None,
    earlier: Tensor | None,
    history: DynamicGateHistory,
) -> Tensor:
    """Guard one token of every row on one GPU. Arguments and result are those of `interface.Step`."""
    content = None
    if config.tokens.special_ids and ids is not None:
        content = tables.content(tuple(config.tokens.special_ids), hidden.device)
    evidence, previous = tables.evidence(config, hidden.device), history.last()
    keys = None if earlier is None else history.keys.contiguous()
    earlier = None if earlier is None else earlier.expand(len(hidden), -1)
    (batch, _, d_in), n, given = hidden.shape, encoder.bias.shape[0], config.statistic_kwargs
    pre = hidden.new_empty(batch, n, dtype=torch.float32)
    squares = None if config.tokens.outlier_norm is None else hidden.new_empty(batch, dtype=torch.float32)
    state = hidden.new_empty(batch, 1, STATE_SIZE, dtype=torch.float32)
    edited = onto.new_empty(batch, 1, d_in)
    with torch.cuda.device_of(hidden):
        encode_kernel[batch, triton.cdiv(n, ENCODE_TILE["TILE_N"])](
            hidden,
            encoder.weight,
            encoder.bias,
            pre,
            squares,
            hidden.stride(0),
            d_in,
            n,
            HAS_LIMIT=squares is not None,
            **ENCODE_TILE,
        )
        gate_kernel[batch, triton.cdiv(d_in, EDIT_TILE["TILE_D"])](
            onto,
            pre,
            squares,
            encoder.threshold,
            decoder.clamp,
            decoder.weight,
            ids,
            content,
            mask,
            earlier,
            keys,
            previous,
            evidence,
            state,
            edited,
            onto.stride(0),
            0 if ids is None else ids.stride(0),
            0 if mask is None else mask.stride(0),
            0 if earlier is None else earlier.stride(0),
            0 if earlier is None else earlier.stride(1),
            0 if keys is None else keys.stride(0),
            0 if previous is None else previous.stride(0),
            0 if content is None else len(content) - 1,
            0 if earlier is None else earlier.shape[1],
            d_in,
            n,
            config.num_features,
            float(given.min_tokens),
            float(config.tau),
            float(config.tokens.outlier_norm or 0.0),
            given.bias,
            given.drift,
            given.other_mean,
            given.row_variance,
            given.token_variance,
            given.sum_weight,
            WINDOWED=config.statistic == "windowed",
            HAS_LIMIT=squares is not None,
            HAS_IDS=content is not None,
            HAS_MASK=mask is not None,
            HAS_EARLIER=earlier is not None,
            HAS_PREVIOUS=previous is not None,
            HAS_EVIDENCE=evidence is not None,
            STICKY=config.sticky,
            CLAMP_ALL=config.clamp_mode == "all",
            **FIELDS,
            **EDIT_TILE,
        )
    history.append(state, whole=mask is None)
    return edited


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if the kernels compile on this device and agree with the operators.

    Checked once on a small example. If False, it warns, and the guardrail uses the operators: the same result, in more
    kernels.
    """
    try:
        problem = first_difference(fused_step, device, dtype)
    except Exception as error:  # a compiler can raise any exception
        problem = f"{type(error).__name__}: {error}"
    if problem:
        warnings.warn(f"The fused kernels do not work on {device}, so decoding uses more kernels there. {problem}")
    return problem is None
