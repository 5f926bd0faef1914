"""A sparse autoencoder for the synthetic model: BatchTopK (Bussmann et al. 2024, arXiv 2412.06410), trained in seconds.

    a = batchtopk(relu((x - b_dec) W_enc + b_enc)),   L = |x - (a W_dec + b_dec)|^2,   |W_dec[i]| = 1

on residuals with every dimension standardized; afterwards the threshold is set to the wanted number of active latents
and the standardization goes into the weights, so that the result reads the model's residuals as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.synthetic.world import World
from sae_unlearn import SparseAutoencoder
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.sae.explained import ExplainedVariance


@dataclass(frozen=True)
class SAEConfig:
    """Shape and training of the autoencoder."""

    layer: int = 1
    d_sae: int = 512
    k: int = 12
    sentences: int = 12_000
    steps: int = 800
    batch_size: int = 512
    learning_rate: float = 2e-3
    seed: int = 0


def harvest(model: nn.Module, tokenizer, world: World, config: SAEConfig, seed: int, sentences: int) -> Tensor:
    """The layer's outputs at all tokens but the first of the world's sentences: `[tokens, d_in]`."""
    texts = [row.text for row in islice(world.stream(seed), sentences)]
    found = []
    for batch in residual_batches(model, tokenizer(texts)["input_ids"], config.layer, 256):
        kept = batch.kept.clone()
        kept[:, 0] = False
        found.append(batch.residual[kept])
    return torch.cat(found)


def train_sae(model: nn.Module, tokenizer, world: World, config: SAEConfig) -> SparseAutoencoder:
    """Train on sentences that the model has not been trained on (the stream of another seed)."""
    generator = torch.Generator().manual_seed(config.seed)
    x = harvest(model, tokenizer, world, config, config.seed + 1000, config.sentences)
    mean, scale = x.mean(0), x.std(0)
    x = (x - mean) / scale
    d_in = x.shape[1]
    W_dec = nn.functional.normalize(torch.randn(config.d_sae, d_in, generator=generator)).requires_grad_()
    W_enc = W_dec.detach().T.clone().requires_grad_()
    b_enc, b_dec = torch.zeros(config.d_sae, requires_grad=True), torch.zeros(d_in, requires_grad=True)
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=config.learning_rate, betas=(0.9, 0.99))
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        rows = x[torch.randint(len(x), (config.batch_size,), generator=generator)]
        a = torch.relu((rows - b_dec) @ W_enc + b_enc)
        least = a.detach().flatten().topk(config.k * len(rows)).values[-1]
        error = (a * (a >= least)) @ W_dec + b_dec - rows
        error.square().sum(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        sample = x[torch.randint(len(x), (8192,), generator=generator)]
        pre = (sample - b_dec) @ W_enc + b_enc
        threshold = torch.relu(pre).flatten().topk(config.k * len(sample)).values[-1]
        # x = (h - mean) / scale goes into the weights
        return SparseAutoencoder(
            W_enc=W_enc / scale[:, None],
            b_enc=b_enc - (mean / scale + b_dec) @ W_enc,
            W_dec=W_dec * scale,
            b_dec=b_dec * scale + mean,
            architecture="batchtopk",
            threshold=torch.full((config.d_sae,), threshold.item()),
            layer=config.layer,
        )


@torch.no_grad()
def explained_variance(sae: SparseAutoencoder, h: Tensor) -> tuple[float, float]:
    """Explained variance on `h [tokens, d_in]`, and the mean number of active latents."""
    a, sums = sae.encode(h), ExplainedVariance(h.shape[1])
    sums.add(h, sae.decode(a))
    return sums.explained() or 0.0, (a > 0).float().sum(-1).mean().item()
