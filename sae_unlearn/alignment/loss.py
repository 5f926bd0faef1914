"""The alignment loss: toward unknown, away from known, hidden states and predictions that should stay.

Codes are SAE pre-activations (or raw hidden states), so that the gradient reaches an inactive latent; an activation
behind a ReLU or a threshold would pass none. Every distance is in units of `scale`, the spread of the unknown entities'
codes, and is the mean over the n codes of a row.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


PARTS = ("toward", "away", "mse", "kl")


class Standing(NamedTuple):
    """Codes of a batch of targets, and of known and unknown entities in the base model.

    Everything except `z` comes from the frozen base model and does not change. A row has n codes, the latents (or raw
    dimensions) of the loss. The slice `known` holds those that are higher for known entities.

    Attributes:
        z (Tensor): `[rows, n]`, codes of the targets, which receive the gradient.
        pair (Tensor): `[rows, n]`, codes of an unknown entity of the same type in the same template, drawn for the row.
        contrast (Tensor): `[rows, n]`, likewise of a known entity.
        unknown_mean, known_mean (Tensor): `[rows, n]`, means over the unknown and the known entities in the row's
            template.
        limit (Tensor): `[rows, n]`, 95th percentile of the unknown entities.
        scale (Tensor): `[rows, n]`, standard deviation of the unknown entities.
        group (Tensor): `[rows]`, number of the row's type and template.
        bank, bank_group (Tensor): `[m, n]` and `[m]`, all unknown entities and their groups.
        known (slice): Columns of codes that are higher for known entities.
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
    """Return `mean_j H((z_j - other_j) / scale_j)`: `[rows, n] -> [rows]`.

    H(x) = x^2 / 2 up to |x| = 1, then |x| - 1/2
    """
    return F.huber_loss(z / scale, other / scale, reduction="none").mean(dim=-1)


def squared(z: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """Return `mean_j ((z_j - other_j) / scale_j)^2`: `[rows, n] -> [rows]`."""
    return ((z - other) / scale).square().mean(dim=-1)


def paired(at: Standing) -> Tensor:
    """Return `huber(z, u)` to an unknown entity `u` of the same type in the same template: `[rows]`.

    Each target keeps its own few unknown entities (`pairs_per_target`) throughout training, so that the targets come to
    spread as unknown entities do. If they were drawn again at each step, the optimum would be the unknown entities'
    median for every target.
    """
    return huber(at.z, at.pair, at.scale)


def centroid(at: Standing) -> Tensor:
    """Return `squared(z, mean of the unknown)`: `[rows]`.

    Probably closest to the wording of arXiv 2509.15631. Its optimum is one point for all targets, which a refitted
    probe separates from unknown entities at once; watch the variance ratio.
    """
    return squared(at.z, at.unknown_mean, at.scale)


def cosine(at: Standing) -> Tensor:
    """Return `1 - cos((z - m) / scale, (u - m) / scale)`: `[rows]`.

    m is the mean of the unknown entities, u a sampled unknown entity.
    """
    z, pair = (at.z - at.unknown_mean) / at.scale, (at.pair - at.unknown_mean) / at.scale
    return 1 - F.cosine_similarity(z, pair, dim=-1)


def mmd(at: Standing) -> Tensor:
    """Return the squared maximum mean discrepancy of the targets to unknown entities.

        MMD^2 = mean k(z, z') - 2 mean k(z, u) + mean k(u, u'),   k(x, y) = exp(-|x - y|^2 / (2 w^2))

    (Gretton et al. 2012) in units of `scale`, per (type, template), with w the median distance among the unknown
    entities. It is a property of a batch: each of its rows carries the value of its group, and batches of more targets
    estimate it better.
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
    """Return `mean over known latents of relu(z - q95) / scale`: `[rows]`.

    q95 is the unknown entities' 95th percentile. The part is 0 inside the range of the unknown entities, so that
    nothing is pushed past it. Without known latents it is 0.
    """
    known = at.known
    if known.stop == known.start:
        return none(at)
    return (torch.relu(at.z[:, known] - at.limit[:, known]) / at.scale[:, known]).mean(dim=-1)


def triplet(at: Standing) -> Tensor:
    """Return `relu(1 + huber(z, u) - huber(z, k))`: `[rows]`.

    u is a sampled unknown and k a sampled known entity.
    """
    return torch.relu(MARGIN + huber(at.z, at.pair, at.scale) - huber(at.z, at.contrast, at.scale))


def repel(at: Standing) -> Tensor:
    """Return `-squared(z, mean of the known)`: `[rows]`, for `toward="centroid"` and a weight lam < 1.

    With squared distances the optimum of `|z - u|^2 - lam |z - k|^2` is `z = (u - lam k) / (1 - lam)`: beyond the
    unknown entities' mean u, seen from the known ones' k. For lam >= 1 there is none.
    """
    return -squared(at.z, at.known_mean, at.scale)


def repel_pairs(at: Standing) -> Tensor:
    """Return `-huber(z, k)`, k a sampled known entity: `[rows]`.

    It is `repel` for `toward="paired"`, whose distance grows linearly and could not balance a quadratic repulsion.
    """
    return -huber(at.z, at.contrast, at.scale)


def none(at: Standing) -> Tensor:
    """Return zero: `[rows]`."""
    return torch.zeros_like(at.z[:, 0])


AWAY: dict[str, Callable[[Standing], Tensor]] = {"hinge": hinge, "triplet": triplet, "repel": repel, "none": none}


def away_part(away: str, toward: str) -> Callable[[Standing], Tensor]:
    """Return the function of the option `away` for the option `toward`."""
    return repel_pairs if (away, toward) == ("repel", "paired") else AWAY[away]


def kl_to_base(base_logits: Tensor, logits: Tensor) -> Tensor:
    """Return the sum over tokens of KL(base || tuned), in nats: a scalar.

        KL(base || tuned) = sum_v p_base (log p_base - log p)

    Args:
        base_logits (Tensor): `[tokens, vocabulary]`, without gradient.
        logits (Tensor): `[tokens, vocabulary]`.
    """
    base = F.log_softmax(base_logits.float(), dim=-1)
    tuned = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(tuned, base, reduction="sum", log_target=True)


def hidden_mse(h: Tensor, base_h: Tensor, spread: Tensor) -> Tensor:
    """Return `mean_j ((h_j - base_h_j) / spread_j)^2`: `[rows]`.

    Args:
        h, base_h (Tensor): `[rows, d_in]`, residual stream at the last token of entities that should stay.
        spread (Tensor): `[d_in]`, standard deviation of the base model's states over entities.
    """
    return ((h.float() - base_h) / spread).square().mean(dim=-1)


def counts_of(inputs: Mapping[str, Any]) -> Tensor:
    """Return the number of rows or tokens in each of `PARTS` of a batch of `AlignmentItems`: `[4]`."""
    rows = len(inputs["input_ids"])
    tokens = inputs["retain_at"].sum()
    return torch.stack([tokens.new_tensor(rows)] * 3 + [tokens]).float()


def count_of(part: str, counts: Tensor) -> Tensor:
    """Return the count of one part from `counts_of`."""
    return counts[PARTS.index(part)]


class PartSums:
    """Sums and counts of each part, for training and evaluation."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}

    def add(self, mode: str, sums: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add the sums and counts of a batch.

        Args:
            mode (str): "train" or "eval".
            sums (mapping): Sum of each part.
            counts (Tensor): From `counts_of`.
        """
        for part, value in sums.items():
            held = self._sums[mode].setdefault(part, torch.zeros(2, device=value.device, dtype=torch.float32))
            held += torch.stack([value.detach().float(), count_of(part, counts)])

    def take_means(self, mode: str, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the mean of each part that was measured since the last call, and reset the sums.

        Args:
            mode (str): "train" or "eval".
            reduce (callable): Sum over processes.
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
