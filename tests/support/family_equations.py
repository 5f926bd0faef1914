"""SAEs of a family's folder against the family's own equations."""

import torch
from sae_folders import residual

from sae_unlearn.sae import SparseAutoencoder


H = residual(128, dtype=torch.float64)


def load(folder, **kwargs):
    return SparseAutoencoder.from_pretrained(folder, dtype=torch.float64, **kwargs)


def double(state):
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in state.items()}


def topk(pre, k):
    values, indices = torch.relu(pre).topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def agree(sae, features, output, h=H):
    """Features and reconstruction as the family computes them, some of the features being off."""
    assert 0 < (features > 0).sum() < features.numel()
    torch.testing.assert_close(sae.encode(h), features, rtol=0, atol=1e-6)
    torch.testing.assert_close(sae(h), output, rtol=0, atol=1e-6)
