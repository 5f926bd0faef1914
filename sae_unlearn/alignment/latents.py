"""Which latents of an SAE tell known entities from unknown ones.

The space in which targets are aligned: some latents of an SAE, or the hidden states themselves.

Whether the codes tell known from unknown entities that had no part in choosing them.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sae_unlearn.errors import AlignmentError
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.equations import layer_normed
from sae_unlearn.stats import auc


class Latents(NamedTuple):
    """Latent ids, best first, with their scores.

    Attributes:
        known: ids of latents that fire more often on known entities.
        unknown: ids of latents that fire more often on unknown entities.
        known_scores, unknown_scores: the score of each, in (0, 1].
    """

    known: list[int]
    unknown: list[int]
    known_scores: list[float]
    unknown_scores: list[float]


def firing_frequency(sae: SparseAutoencoder, h: Tensor, block: int = 4096) -> Tensor:
    """Share of rows on which each latent is active: residuals `[rows, d_in]` -> `[d_sae]`."""
    count = torch.zeros(sae.d_sae, device=sae.device)
    with torch.no_grad():
        for part in h.split(block):
            count += (sae.encode(part.to(sae.device, sae.dtype)) > 0).sum(dim=0)
    return count / max(len(h), 1)


def latent_scores(known: Tensor, unknown: Tensor) -> Tensor:
    """`min over types of (f_known - f_unknown)` for every latent, f the firing frequency at the entity's last token.

    After Ferrando et al. 2024 (arXiv 2411.14257), who take the latents with the largest value, and with the signs
    turned the unknown latents.

    Args:
        known, unknown: `[types, d_sae]`, frequencies per entity type.
    """
    return (known - unknown).min(dim=0).values


def select_latents(
    known: Tensor,
    unknown: Tensor,
    generic: Tensor | None,
    num_known: int,
    num_unknown: int,
    max_generic: float = 0.02,
) -> Latents:
    """The best latents of each kind.

    Args:
        known, unknown: `[types, d_sae]`, firing frequencies on known and unknown entities, per type.
        generic: `[d_sae]`, firing frequency on tokens of ordinary text; None if there is none.
        num_known, num_unknown: how many of each; fewer are returned where fewer have a score above zero.
        max_generic: latents that fire on a larger share of ordinary tokens are left out.

    Raises:
        AlignmentError: no latent of either kind is left.
    """
    found = []
    for score, number in ((latent_scores(known, unknown), num_known), (latent_scores(unknown, known), num_unknown)):
        if generic is not None:
            score = score.masked_fill(generic.to(score.device) > max_generic, -1.0)
        best = torch.topk(score, min(number, len(score)))
        keep = best.values > 0
        found.append((best.indices[keep].tolist(), best.values[keep].tolist()))
    (known_ids, known_values), (unknown_ids, unknown_values) = found
    if not known_ids and not unknown_ids:
        raise AlignmentError(
            "No latent of the SAE fires more often on known than on unknown entities, or the reverse, in every entity "
            f"type (with latents left out that fire on more than {max_generic:g} of ordinary tokens); use an SAE of "
            "a middle layer, more entities, fewer types, or sae=None."
        )
    return Latents(known_ids, unknown_ids, known_values, unknown_values)


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
        self.normed = sae.input_norm == "layer"
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


@dataclass(frozen=True)
class Separation:
    """Area under the ROC curve on held-out entities, known against unknown; 0.5 is chance, 1 is perfect.

    Attributes:
        known: by the known latents alone; None if there are none.
        unknown: by the unknown latents alone (lower is more known); None if there are none.
        both: by both together.
        num_known, num_unknown: held-out entities of each kind.
    """

    known: float | None
    unknown: float | None
    both: float
    num_known: int
    num_unknown: int

    @property
    def best(self) -> float:
        """The largest of the three."""
        return max(value for value in (self.known, self.unknown, self.both) if value is not None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, minimum: float) -> None:
        """Raises unless something separates.

        Raises:
            AlignmentError: no group of codes reaches `minimum`.
        """
        if self.best < minimum:
            raise AlignmentError(
                f"Nothing that the loss looks at tells known from unknown entities: AUC {self.best:.2f} at best on "
                f"{self.num_known} known and {self.num_unknown} unknown held-out entities (known latents "
                f"{_shown(self.known)}, unknown latents {_shown(self.unknown)}), below min_separation={minimum:g}. "
                "Training would move the targets nowhere in particular. Use an SAE of a middle layer, label the "
                "entities with this very model, give more of them, or lower min_separation."
            )


def knownness(codes: Tensor, known: slice, unknown: slice) -> Tensor:
    """Mean of the known codes minus mean of the unknown ones, in standard units: `[rows, n] -> [rows]`."""
    score = torch.zeros_like(codes[:, 0])
    if known.stop > known.start:
        score = score + codes[:, known].mean(dim=-1)
    if unknown.stop > unknown.start:
        score = score - codes[:, unknown].mean(dim=-1)
    return score


def mean_per_entity(values: Tensor, entity: Tensor) -> Tensor:
    """Mean over the rows of each entity, in the order of the entities' numbers: `[rows, ...] -> [entities, ...]`."""
    names, index = entity.unique(return_inverse=True)
    sums = values.new_zeros(len(names), *values.shape[1:]).index_add_(0, index, values)
    counts = torch.bincount(index, minlength=len(names)).to(values.dtype)
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def separation(
    known_codes: Tensor,
    known_entity: Tensor,
    unknown_codes: Tensor,
    unknown_entity: Tensor,
    known: slice,
    unknown: slice,
) -> Separation:
    """The report for held-out entities, each judged by the mean over its prompts.

    Args:
        known_codes, unknown_codes: `[rows, n]` in standard units, of known and unknown entities.
        known_entity, unknown_entity: `[rows]`, number of each row's entity.
        known, unknown: columns of known and unknown latents.
    """
    nothing = slice(0, 0)
    found: dict[str, float | None] = {}
    for name, columns in (("known", (known, nothing)), ("unknown", (nothing, unknown)), ("both", (known, unknown))):
        if all(part.stop == part.start for part in columns):
            found[name] = None
            continue
        k = mean_per_entity(knownness(known_codes, *columns), known_entity)
        u = mean_per_entity(knownness(unknown_codes, *columns), unknown_entity)
        found[name] = auc(k, u)
    numbers = len(known_entity.unique()), len(unknown_entity.unique())
    return Separation(found["known"], found["unknown"], cast(float, found["both"]), *numbers)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
