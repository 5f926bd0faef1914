"""Folding: exact conversion of published parametrizations to the form of `SparseAutoencoder`.

Every function computes in float64 and returns float64 for the tensors that it changed; the caller rounds once, at the
end. Matrices are W_enc [d_in, d_sae] and W_dec [d_sae, d_in]; vectors are [d_sae], except b_dec [d_in].
"""

from __future__ import annotations

import torch


# Columns of W_enc in float64 at a time, so that folding a bias never doubles the memory of a large SAE.
BLOCK = 4096

# Smallest norm of a decoder row, as in SAELens: a dead feature must not divide by zero.
MIN_DECODER_NORM = 1e-8


def fold_b_dec_into_b_enc(W_enc: torch.Tensor, b_enc: torch.Tensor, b_dec: torch.Tensor) -> torch.Tensor:
    """Return the b_enc of `(h - b_dec) @ W_enc + b_enc  =  h @ W_enc + (b_enc - b_dec @ W_enc)`."""
    b_enc, b_dec = b_enc.double(), b_dec.double()
    shifts = [b_dec @ block.double() for block in W_enc.split(BLOCK, dim=1)]
    return b_enc - torch.cat(shifts)


def fold_input_mean(W_enc: torch.Tensor) -> torch.Tensor:
    """Return the W_enc of `(h - mean(h)) @ W_enc  =  h @ (W_enc - mean over d_in of W_enc)`.

    Fold `b_dec` first: it is subtracted after the mean, so it belongs to the original columns.
    """
    return torch.cat([block - block.mean(dim=0) for block in map(torch.Tensor.double, W_enc.split(BLOCK, dim=1))], 1)


def fold_input_scale(
    W_enc: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return W_enc * s, W_dec / s and b_dec / s of an SAE that reads `s * h` and divides its output by s.

    If `b_dec` is subtracted from the scaled input, fold that first. Thresholds and b_enc do not change.
    """
    return W_enc.double() * scale, W_dec.double() / scale, b_dec.double() / scale


def fold_gate(
    W_enc: torch.Tensor, b_gate: torch.Tensor, b_mag: torch.Tensor, r_mag: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a gated SAE with tied weights as a JumpReLU SAE.

    Rajamanoharan et al. 2024 (arXiv 2404.16014, section 3.2): with `pi = h @ W_enc` the feature is
    `1[pi + b_gate > 0] * relu(m)` for `m = pi * exp(r_mag) + b_mag`, and
    `pi + b_gate > 0  <=>  m > b_mag - b_gate * exp(r_mag)` since `exp(r_mag) > 0`.

    Returns:
        W_enc * exp(r_mag), b_enc = b_mag, threshold = max(0, b_mag - b_gate * exp(r_mag)).
    """
    gain = r_mag.double().exp()
    b_mag = b_mag.double()
    return W_enc.double() * gain, b_mag, (b_mag - b_gate.double() * gain).clamp(min=0)


def fold_decoder_norm(
    W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Multiply pre-activations by n_j = |W_dec[j]| and divide decoder rows by it.

    This is SAELens' `rescale_acts_by_decoder_norm`. The k largest or the threshold apply to the rescaled
    pre-activations, so they do not change.
    """
    norm = W_dec.double().norm(dim=1).clamp(min=MIN_DECODER_NORM)
    return W_enc.double() * norm, b_enc.double() * norm, W_dec.double() / norm[:, None]
