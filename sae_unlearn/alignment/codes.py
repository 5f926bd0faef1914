"""The space in which targets are aligned: some latents of an SAE, or the hidden states themselves."""

import torch
from torch import Tensor, nn

from sae_unlearn.alignment.latents import Latents
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.equations import layer_normed


class LatentCodes(nn.Module):
    """Pre-activations of selected latents: `codes = h @ W_enc[:, ids] + b_enc[ids]`, known latents first; of the
    normalised `h` where the SAE has an `input_norm`.

    Only the selected columns are kept. Pre-activations and not activations, since an inactive latent passes no
    gradient. They are computed in float32 whatever the model's dtype is, outside of autocast.

    Attributes:
        known: the columns of the known latents.
        unknown: the columns of the unknown latents.
    """

    W_enc: Tensor
    b_enc: Tensor

    def __init__(self, sae: SparseAutoencoder, latents: Latents) -> None:
        super().__init__()
        ids = torch.tensor([*latents.known, *latents.unknown], device=sae.device)
        self.register_buffer("W_enc", sae.W_enc.detach()[:, ids].float())
        self.register_buffer("b_enc", sae.b_enc.detach()[ids].float())
        self.normed = sae.input_norm is not None
        self.known = slice(0, len(latents.known))
        self.unknown = slice(len(latents.known), len(ids))

    def forward(self, h: Tensor) -> Tensor:
        """Residual stream `[..., d_in]` -> codes `[..., n]`."""
        with torch.autocast(h.device.type, enabled=False):
            x = layer_normed(h.float())[0] if self.normed else h.float()
            return x @ self.W_enc + self.b_enc


class RawCodes(nn.Module):
    """The hidden states themselves, each dimension turned so that larger is more known: the control without an SAE.

        codes = (h * sign)[order],   sign = sign(mean known - mean unknown)

    ordered by how far apart the means are in units of the unknown entities' spread, so that the first `num_known`
    columns are the most telling ones. The loss on these codes is the same as on latents.

    Args:
        known, unknown: `[rows, d_in]`, base states of known and unknown entities.
        num_known: columns that count as known.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, known: Tensor, unknown: Tensor, num_known: int) -> None:
        super().__init__()
        difference = known.float().mean(dim=0) - unknown.float().mean(dim=0)
        apart = difference.abs() / unknown.float().std(dim=0).clamp(min=1e-12)
        order = apart.argsort(descending=True)
        self.register_buffer("order", order)
        self.register_buffer("sign", torch.where(difference < 0, -1.0, 1.0)[order])
        self.known = slice(0, min(num_known, len(order)))
        self.unknown = slice(len(order), len(order))

    def forward(self, h: Tensor) -> Tensor:
        """Residual stream `[..., d_in]` -> codes `[..., d_in]`."""
        return h.float()[..., self.order] * self.sign
