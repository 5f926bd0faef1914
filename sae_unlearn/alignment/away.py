"""Away from known: what keeps a target's codes from looking known."""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_unlearn.alignment.loss import huber, squared
from sae_unlearn.alignment.standing import Standing


MARGIN = 1.0


def hinge(at: Standing) -> Tensor:
    """`mean over known latents of relu(z - q95) / scale`, q95 the unknown entities' 95th percentile: `[rows]`.

    It ends inside of the unknown entities' range, so that nothing is pushed past it. Without known latents it is 0.
    """
    known = at.known
    if known.stop == known.start:
        return none(at)
    return (torch.relu(at.z[:, known] - at.limit[:, known]) / at.scale[:, known]).mean(dim=-1)


def triplet(at: Standing) -> Tensor:
    """`relu(1 + huber(z, u) - huber(z, k))`, u a sampled unknown and k a sampled known entity: `[rows]`."""
    return torch.relu(MARGIN + huber(at.z, at.pair, at.scale) - huber(at.z, at.contrast, at.scale))


def repel(at: Standing) -> Tensor:
    """`-squared(z, mean of the known)`: `[rows]`, to be used with `toward="centroid"` and a weight lam < 1.

    With squared distances the optimum of `|z - u|^2 - lam |z - k|^2` is `z = (u - lam k) / (1 - lam)`: beyond the
    unknown entities' mean u, seen from the known ones' k, and nowhere at all for lam >= 1.
    """
    return -squared(at.z, at.known_mean, at.scale)


def repel_pairs(at: Standing) -> Tensor:
    """`-huber(z, k)`, k a sampled known entity: `repel` for `toward="paired"`, whose distance grows linearly and could
    not hold a quadratic repulsion. `[rows]`."""
    return -huber(at.z, at.contrast, at.scale)


def none(at: Standing) -> Tensor:
    """Zero: `[rows]`."""
    return torch.zeros_like(at.z[:, 0])


AWAY: dict[str, Callable[[Standing], Tensor]] = {"hinge": hinge, "triplet": triplet, "repel": repel, "none": none}


def away_part(away: str, toward: str) -> Callable[[Standing], Tensor]:
    """The function for the option `away` beside the option `toward`."""
    return repel_pairs if (away, toward) == ("repel", "paired") else AWAY[away]
