"""The two Triton kernels of `triton_step`: the pre-activations; gate, next state and edit."""

import triton
import triton.language as tl


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
def windowed_value(hits, tokens, lowest, peak, min_tokens, drift, other_mean, row_variance, token_variance, sum_weight):
    """Compute `S`, `L` and `P` of `gate.windowed` from `H`, `N`, `L` and `P`; NaN if `H` is."""
    y = hits - drift * tokens
    known = y == y
    lowest = tl.where(known, tl.minimum(y, lowest), y)
    peak = tl.where(known, tl.maximum(y - lowest, peak), y)
    counted = tl.maximum(tokens, min_tokens)
    variance = (row_variance * counted + token_variance) * counted
    mean = tl.div_rn(hits - other_mean * tokens, tl.sqrt_rn(variance))
    return tl.where(known, tl.maximum(mean, sum_weight * peak), y), lowest, peak


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
    guarded,
    min_tokens,
    tau,
    limit,
    bias,
    drift,
    other_mean,
    row_variance,
    token_variance,
    sum_weight,
    WINDOWED: tl.constexpr,
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
    touched = 0.0  # number of active features that are guarded
    for start in range(0, n, TILE_N):
        j = start + tl.arange(0, TILE_N)
        a = tl.load(pre + row * n + j, mask=j < n, other=0.0)
        t = tl.load(threshold + j, mask=j < n, other=0.0)
        a = a * (a > t).to(tl.float32)  # a product, which keeps NaN
        strength += tl.sum(a, axis=0)
        if HAS_EVIDENCE:
            w = tl.load(evidence + j, mask=j < n, other=0.0)
            said += tl.sum(tl.where(a != 0.0, w, 0.0), axis=0)
        touched += tl.sum(((a != 0.0) & (j < guarded)).to(tl.float32), axis=0)
    strength = tl.where(counted, strength, 0.0)
    hit = (strength != 0.0).to(tl.float32)
    if HAS_EVIDENCE:
        hit = tl.where(counted, said, 0.0)
    touched = tl.where(counted, touched, 0.0)
    if HAS_LIMIT:
        usual = tl.sqrt_rn(tl.load(squares + row)) <= limit
        hit = tl.where(usual, hit, 0.0)
        touched = tl.where(usual, touched, 0.0)
    sound = (tl.abs(strength) < float("inf")) & (lost == 0.0)
    if WINDOWED:
        hit += bias * counted.to(tl.float32)
    hit = tl.where(sound, hit, float("nan"))
    touched = tl.where(sound, touched, 1.0)

    hits = hit
    tokens = counted.to(tl.float32)
    if HAS_PREVIOUS:
        hits += tl.load(previous + row * previous_stride + HITS)
        tokens += tl.load(previous + row * previous_stride + TOKENS)
    if WINDOWED:
        lowest = 0.0
        peak = 0.0
        if HAS_PREVIOUS:
            lowest += tl.load(previous + row * previous_stride + LOWEST)
            peak += tl.load(previous + row * previous_stride + PEAK)
        value, lowest, peak = windowed_value(
            hits, tokens, lowest, peak, min_tokens, drift, other_mean, row_variance, token_variance, sum_weight
        )
    else:
        value = tl.div_rn(hits, tl.maximum(tokens, min_tokens))
        lowest = 0.0
        peak = value
    fired_at = tl.where(value <= tau, 0.0, tokens)  # NaN fires
    if HAS_PREVIOUS and STICKY:
        before = tl.load(previous + row * previous_stride + FIRED_AT)
        fired_at = tl.where(before > 0.0, before, fired_at)
    if tile == 0:
        tl.store(state + row * STATE + HITS, hits)
        tl.store(state + row * STATE + TOKENS, tokens)
        tl.store(state + row * STATE + LOWEST, lowest)
        tl.store(state + row * STATE + PEAK, peak)
        tl.store(state + row * STATE + FIRED_AT, fired_at)
        tl.store(state + row * STATE + KEPT, kept.to(tl.float32))

    i = tile * TILE_D + tl.arange(0, TILE_D)
    h = tl.load(onto + row * row_stride + i, mask=i < d_in, other=0.0).to(tl.float32)
    edit = tl.zeros([TILE_D], tl.float32)
    if (touched > 0.0) & (fired_at > 0.0):
        for start in range(0, guarded, TILE_N):
            j = start + tl.arange(0, TILE_N)
            within = j < guarded
            a = tl.load(pre + row * n + j, mask=within, other=0.0)
            t = tl.load(threshold + j, mask=within, other=0.0)
            v = tl.load(clamp + j, mask=within, other=0.0)
            a = a * (a > t).to(tl.float32)
            change = tl.where(((a != 0.0) | CLAMP_ALL) & within, v - a, 0.0)
            change = tl.where(lost > 0.0, float("nan"), change)
            w = tl.load(weight + j[:, None] * d_in + i[None, :], mask=within[:, None] & (i[None, :] < d_in), other=0.0)
            edit += tl.sum(change[:, None] * w, axis=0)
    tl.store(edited + row * d_in + i, (h + edit).to(edited.dtype.element_ty), mask=i < d_in)
