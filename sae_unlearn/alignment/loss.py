"""Toward unknown: how far a target's codes are from those of unknown entities.

Codes are SAE pre-activations (or raw hidden states), so that the gradient reaches a latent that is off; an activation
behind a ReLU or a threshold would have none there. Every distance is taken in units of `scale`, the spread of the
unknown entities' codes, and is the mean over the n codes of a row.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_unlearn.alignment.standing import Standing


def huber(z: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """`mean_j H((z_j - other_j) / scale_j)`, H(x) = x^2 / 2 up to |x| = 1, then |x| - 1/2: `[rows, n] -> [rows]`."""
    return F.huber_loss(z / scale, other / scale, reduction="none").mean(dim=-1)


def squared(z: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """`mean_j ((z_j - other_j) / scale_j)^2`: `[rows, n] -> [rows]`."""
    return ((z - other) / scale).square().mean(dim=-1)


def paired(at: Standing) -> Tensor:
    """`huber(z, u)` to an unknown entity `u` of the same type in the same template: `[rows]`.

    Each target keeps its own few unknown entities (`pairs_per_target`) all through training, so that the targets come
    to spread as unknown entities do. Were they drawn anew at each step, the optimum would be the unknown entities'
    median for every target alike.
    """
    return huber(at.z, at.pair, at.scale)


def centroid(at: Standing) -> Tensor:
    """`squared(z, mean of the unknown)`: `[rows]`.

    Probably nearest to the wording of arXiv 2509.15631. Its optimum is one point for all targets, which a re-fitted
    probe tells from unknown entities at once; watch the variance ratio.
    """
    return squared(at.z, at.unknown_mean, at.scale)


def cosine(at: Standing) -> Tensor:
    """`1 - cos((z - m) / scale, (u - m) / scale)`, m the mean of the unknown, u a sampled unknown entity: `[rows]`."""
    z, pair = (at.z - at.unknown_mean) / at.scale, (at.pair - at.unknown_mean) / at.scale
    return 1 - F.cosine_similarity(z, pair, dim=-1)


def mmd(at: Standing) -> Tensor:
    """Squared maximum mean discrepancy between the targets of the batch and unknown entities (Gretton et al. 2012).

        MMD^2 = mean k(z, z') - 2 mean k(z, u) + mean k(u, u'),   k(x, y) = exp(-|x - y|^2 / (2 w^2))

    in units of `scale`, per (type, template), w the median distance among the unknown. It is a property of a batch:
    each of its rows carries the value of its own group, and batches of more targets estimate it better.
    """
    value = torch.zeros_like(at.z[:, 0])
    for group in at.group.unique():
        rows = at.group == group
        z = at.z[rows] / at.scale[rows]
        unknown = at.bank[at.bank_group == group] / at.scale[rows][0]
        apart = torch.cdist(unknown, unknown)
        width = apart[apart > 0].median() if bool((apart > 0).any()) else apart.new_ones(())

        def kernel(x: Tensor, y: Tensor, width: Tensor = width) -> Tensor:
            return torch.exp(-(x[:, None] - y[None]).square().sum(dim=-1) / (2 * width**2)).mean()

        value = torch.where(rows, kernel(z, z) - 2 * kernel(z, unknown) + kernel(unknown, unknown), value)
    return value


TOWARD: dict[str, Callable[[Standing], Tensor]] = {"paired": paired, "centroid": centroid, "cosine": cosine, "mmd": mmd}
