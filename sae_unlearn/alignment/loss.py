"""Toward unknown: how far a target's codes are from those of unknown entities.

Codes are SAE pre-activations (or raw hidden states), so that the gradient reaches a latent that is off; an activation
behind a ReLU or a threshold would have none there. Every distance is taken in units of `scale`, the spread of the
unknown entities' codes, and is the mean over the n codes of a row.

Away from known: what keeps a target's codes from looking known.

What the alignment loss is made of, for the targets of one batch.

What is to stay: the base model's predictions on other text, and its hidden states of other entities.

The parts of the loss, summed until they are logged.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


PARTS = ("toward", "away", "mse", "kl")


class Standing(NamedTuple):
    """Where the targets of a batch stand, and where known and unknown entities stood in the base model.

    Everything but `z` comes from the frozen base model and never moves. n codes of a row: the latents (or raw
    dimensions) that the loss looks at, of which the slice `known` are those that are higher for known entities.

    Attributes:
        z: `[rows, n]`, codes of the targets; the gradient goes here.
        pair: `[rows, n]`, of an unknown entity of the same type in the same template, drawn for the row.
        contrast: `[rows, n]`, likewise of a known one.
        unknown_mean, known_mean: `[rows, n]`, means over the unknown and the known entities in the row's template.
        limit: `[rows, n]`, 95th percentile of the unknown entities.
        scale: `[rows, n]`, standard deviation of the unknown entities.
        group: `[rows]`, number of the row's type and template.
        bank, bank_group: `[m, n]` and `[m]`, all unknown entities and their groups.
        known: the columns of codes that are higher for known entities.
    """

    z: Tensor
    pair: Tensor
    contrast: Tensor
    unknown_mean: Tensor
    known_mean: Tensor
    limit: Tensor
    scale: Tensor
    group: Tensor
    bank: Tensor
    bank_group: Tensor
    known: slice


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


def kl_to_base(base_logits: Tensor, logits: Tensor) -> Tensor:
    """`sum over tokens of KL(base || tuned) = sum_v p_base (log p_base - log p)`, in nats: a scalar.

    Args:
        base_logits, logits: `[tokens, vocabulary]`; no gradient is needed in the former.
    """
    base = F.log_softmax(base_logits.float(), dim=-1)
    tuned = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(tuned, base, reduction="sum", log_target=True)


def hidden_mse(h: Tensor, base_h: Tensor, spread: Tensor) -> Tensor:
    """`mean_j ((h_j - base_h_j) / spread_j)^2`: `[rows]`.

    Args:
        h, base_h: `[rows, d_in]`, residual stream at the last token of entities that are to stay.
        spread: `[d_in]`, standard deviation of the base model's states over entities.
    """
    return ((h.float() - base_h) / spread).square().mean(dim=-1)


def counts_of(inputs: Mapping[str, Any]) -> Tensor:
    """What each of `PARTS` is a mean over in a batch of `AlignmentItems`, rows or tokens: `[4]`."""
    rows = len(inputs["input_ids"])
    tokens = inputs["retain_at"].sum()
    return torch.stack([tokens.new_tensor(rows)] * 3 + [tokens]).float()


def count_of(part: str, counts: Tensor) -> Tensor:
    """The count of one part, of `counts_of`."""
    return counts[PARTS.index(part)]


class PartSums:
    """Sums and counts of each part, of training and of evaluation."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}

    def add(self, mode: str, sums: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add the sums of a batch, and its counts."""
        for part, value in sums.items():
            held = self._sums[mode].setdefault(part, torch.zeros(2, device=value.device, dtype=torch.float32))
            held += torch.stack([value.detach().float(), count_of(part, counts)])

    def take_means(self, mode: str, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each part since the last call, of which there was something to measure, and a new start.

        Args:
            reduce: sums over processes.
        """
        sums = self._sums[mode]
        means = {}
        for part in PARTS:
            if part in sums:
                total, count = reduce(sums[part]).tolist()
                if count:
                    means[part] = total / count
        sums.clear()
        return means
