"""One decoded token per row in two Triton kernels on a GPU.

They compute the same as `SAEGuardrailLayer` does with torch operators for the `ratio` statistic, with the same counts:
the first kernel the pre-activations, the second the gate, its next state and the edit. With the cache's own append of
that state a guardrail adds three kernels to a decoding step, and with operators about thirty.

The order of the sums of a row is fixed, so its result does not depend on the batch.
"""

import warnings
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate import STATE_SIZE, State
from sae_unlearn.guardrail.kernels.selfcheck import first_difference
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


# Tiles: features by width of the residual stream. Few features per program, so that 20 of them use several processors.
ENCODE_TILE = {"TILE_N": 4, "TILE_D": 512}
EDIT_TILE = {"TILE_N": 16, "TILE_D": 256}
FIELDS = {"STATE": STATE_SIZE, **{name.upper(): column for column, name in enumerate(State._fields)}}


@triton.jit
def encode_kernel(
    hidden,
    weight,
    bias,
    pre,
    squares,
    row_stride,
    d_in,
    n,
    HAS_LIMIT: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_D: tl.constexpr,
):
    """Compute `pre [batch, N] = h W_enc[:, S] + b_enc[S]`, one program per row and tile of features.

    With `HAS_LIMIT` also `squares [batch] = |h|^2`.
    """
    row = tl.program_id(0)
    j = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    total = tl.zeros([TILE_N], tl.float32)
    square = 0.0
    for start in range(0, d_in, TILE_D):
        i = start + tl.arange(0, TILE_D)
        h = tl.load(hidden + row * row_stride + i, mask=i < d_in, other=0.0).to(tl.float32)
        w = tl.load(weight + j[:, None] * d_in + i[None, :], mask=(j[:, None] < n) & (i[None, :] < d_in), other=0.0)
        total += tl.sum(w * h[None, :], axis=1)
        if HAS_LIMIT:
            square += tl.sum(h * h, axis=0)
    tl.store(pre + row * n + j, total + tl.load(bias + j, mask=j < n, other=0.0), mask=j < n)
    if HAS_LIMIT:  # noqa: SIM102 - known before the program runs, and the next condition only while it runs
        if tl.program_id(1) == 0:
            tl.store(squares + row, square)


@triton.jit
def gate_kernel(
    onto,
    pre,
    squares,
    threshold,
    clamp,
    weight,
    ids,
    content,
    mask,
    earlier,
    keys,
    previous,
    evidence,
    state,
    edited,
    row_stride,
    ids_stride,
    mask_stride,
    earlier_stride,
    column_stride,
    keys_stride,
    previous_stride,
    last_id,
    past,
    d_in,
    n,
    min_tokens,
    tau,
    limit,
    HAS_LIMIT: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_EARLIER: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    HAS_EVIDENCE: tl.constexpr,
    STICKY: tl.constexpr,
    CLAMP_ALL: tl.constexpr,
    STATE: tl.constexpr,
    HITS: tl.constexpr,
    TOKENS: tl.constexpr,
    LOWEST: tl.constexpr,
    PEAK: tl.constexpr,
    FIRED_AT: tl.constexpr,
    KEPT: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_D: tl.constexpr,
):
    """Compute the gate of a row, and a tile of `onto`, edited.

    Every program of a row computes the same decision, and the first one writes it. A row that is not edited is copied,
    and its decoder rows are not read.
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    kept = row >= 0
    if HAS_MASK:
        kept = kept & (tl.load(mask + row * mask_stride) != 0)
    counted = kept
    if HAS_IDS:
        counted = counted & (tl.load(content + tl.minimum(tl.load(ids + row * ids_stride), last_id)) != 0)
    lost = 0.0
    if HAS_EARLIER:
        for start in range(0, past, TILE_D):
            i = start + tl.arange(0, TILE_D)
            shown = tl.load(earlier + row * earlier_stride + i * column_stride, mask=i < past, other=0) != 0
            before = tl.load(keys + row * keys_stride + i * STATE + KEPT, mask=i < past, other=1.0)
            lost += tl.sum((shown & (before == 0.0)).to(tl.float32), axis=0)
        counted = counted | (lost > 0.0)
    strength = 0.0
    said = 0.0
    for start in range(0, n, TILE_N):
        j = start + tl.arange(0, TILE_N)
        a = tl.load(pre + row * n + j, mask=j < n, other=0.0)
        t = tl.load(threshold + j, mask=j < n, other=0.0)
        a = a * (a > t).to(tl.float32)  # a product, which keeps NaN
        strength += tl.sum(a, axis=0)
        if HAS_EVIDENCE:
            w = tl.load(evidence + j, mask=j < n, other=0.0)
            said += tl.sum(tl.where(a != 0.0, w, 0.0), axis=0)
    strength = tl.where(counted, strength, 0.0)
    hit = (strength != 0.0).to(tl.float32)
    if HAS_EVIDENCE:
        hit = tl.where(counted, said, 0.0)
    if HAS_LIMIT:
        hit = tl.where(tl.sqrt_rn(tl.load(squares + row)) <= limit, hit, 0.0)
    hit = tl.where((tl.abs(strength) < float("inf")) & (lost == 0.0), hit, float("nan"))

    hits = hit
    tokens = counted.to(tl.float32)
    if HAS_PREVIOUS:
        hits += tl.load(previous + row * previous_stride + HITS)
        tokens += tl.load(previous + row * previous_stride + TOKENS)
    value = tl.div_rn(hits, tl.maximum(tokens, min_tokens))
    fired_at = tl.where(value <= tau, 0.0, tokens)  # NaN fires
    if HAS_PREVIOUS and STICKY:
        before = tl.load(previous + row * previous_stride + FIRED_AT)
        fired_at = tl.where(before > 0.0, before, fired_at)
    if tile == 0:
        tl.store(state + row * STATE + HITS, hits)
        tl.store(state + row * STATE + TOKENS, tokens)
        tl.store(state + row * STATE + LOWEST, 0.0)
        tl.store(state + row * STATE + PEAK, value)
        tl.store(state + row * STATE + FIRED_AT, fired_at)
        tl.store(state + row * STATE + KEPT, kept.to(tl.float32))

    i = tile * TILE_D + tl.arange(0, TILE_D)
    h = tl.load(onto + row * row_stride + i, mask=i < d_in, other=0.0).to(tl.float32)
    edit = tl.zeros([TILE_D], tl.float32)
    if (hit != 0.0) & (fired_at > 0.0):
        for start in range(0, n, TILE_N):
            j = start + tl.arange(0, TILE_N)
            a = tl.load(pre + row * n + j, mask=j < n, other=0.0)
            t = tl.load(threshold + j, mask=j < n, other=0.0)
            v = tl.load(clamp + j, mask=j < n, other=0.0)
            a = a * (a > t).to(tl.float32)
            change = tl.where(((a != 0.0) | CLAMP_ALL) & (j < n), v - a, 0.0)
            change = tl.where(lost > 0.0, float("nan"), change)
            w = tl.load(weight + j[:, None] * d_in + i[None, :], mask=(j[:, None] < n) & (i[None, :] < d_in), other=0.0)
            edit += tl.sum(change[:, None] * w, axis=0)
    tl.store(edited + row * d_in + i, (h + edit).to(edited.dtype.element_ty), mask=i < d_in)


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
    (batch, _, d_in), n = hidden.shape, encoder.bias.shape[0]
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
            float(config.statistic_kwargs.min_tokens),
            float(config.tau),
            float(config.tokens.outlier_norm or 0.0),
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
