"""From an SAE of standardized activations to one that reads the model's activations as they are.

Trained is, on `x = (h - mean) / scale`, `[..., d_in]`:

    pre = (x - b_dec) @ W_enc + b_enc,   a = pre * (pre > theta),   x' = a @ W_dec + b_dec

and with n_j = |scale * W_dec[j]|, the norm of a decoder row in units of h, the same is

    W_enc'     = W_enc * n / scale[:, None]
    b_enc'     = (b_enc - (mean / scale + b_dec) @ W_enc) * n
    threshold  = theta * n
    W_dec'     = W_dec * scale / n[:, None]
    b_dec'     = mean + scale * b_dec

so that `h' = a' @ W_dec' + b_dec'` with decoder rows of unit norm, and `a' = relu(pre') * (pre' > threshold)` is in
units of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_unlearn.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Standardization:
    """`x = (h - mean) / scale`.

    Attributes:
        mean: `[d_in]`.
        scale: `[d_in]`: the standard deviations times one factor, by which the mean norm of x is sqrt(d_in).
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Standardization:
        """Of a sample of activations `[n, d_in]`.

        Without it, the one or two dimensions of a residual stream that hold most of its variance rule the loss.
        """
        mean, scale = tokens.mean(dim=0), tokens.std(dim=0).clamp(min=1e-6)
        factor = ((tokens - mean) / scale).norm(dim=-1).mean() / tokens.shape[-1] ** 0.5
        return cls(mean, scale * factor)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Standardize activations `[..., d_in]`."""
        return (tokens - self.mean) / self.scale


def threshold_for(pre: Tensor, l0: int) -> float:
    """The threshold that `l0` pre-activations of an average token exceed, `[tokens, d_sae]`; at least 0."""
    values = pre.flatten()
    rank = max(1, values.numel() - l0 * len(pre))
    return max(0.0, float(values.kthvalue(rank).values))


def folded(weights: Mapping[str, Tensor], theta: float, by: Standardization, layer: int) -> SparseAutoencoder:
    """The SAE that reads the model's activations; the equations are above.

    Args:
        weights (Mapping[str, Tensor]): `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]` as
            they were trained.
        theta (float): Threshold of all features.
        by (Standardization): What the activations were standardized by.
        layer (int): 0-based decoder layer.
    """
    W_enc, b_enc, W_dec, b_dec = (weights[name].detach().double() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    mean, scale = by.mean.double(), by.scale.double()
    n = (W_dec * scale).norm(dim=-1).clamp(min=1e-30)
    return SparseAutoencoder(
        (W_enc * n / scale[:, None]).float(),
        ((b_enc - (mean / scale + b_dec) @ W_enc) * n).float(),
        (W_dec * scale / n[:, None]).float(),
        (mean + scale * b_dec).float(),
        architecture="batchtopk",
        threshold=torch.as_tensor(theta * n).float(),
        layer=layer,
    )
