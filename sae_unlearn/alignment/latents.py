"""Latents of an SAE that separate known from unknown entities, and the codes that the loss reads.

Codes are the pre-activations of selected latents, or the hidden states themselves. `separation` measures the AUC of the
codes on entities that had no part in choosing them.
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
        known (Tensor): Ids of latents that fire more often on known entities.
        unknown (Tensor): Ids of latents that fire more often on unknown entities.
        known_scores, unknown_scores (Tensor): Score of each, in (0, 1].
    """

    known: list[int]
    unknown: list[int]
    known_scores: list[float]
    unknown_scores: list[float]


def firing_frequency(sae: SparseAutoencoder, h: Tensor, block: int = 4096) -> Tensor:
    """Return the share of rows on which each latent is active: residuals `[rows, d_in]` -> `[d_sae]`."""
    count = torch.zeros(sae.d_sae, device=sae.device)
    with torch.no_grad():
        for part in h.split(block):
            count += (sae.encode(part.to(sae.device, sae.dtype)) > 0).sum(dim=0)
    return count / max(len(h), 1)


def latent_scores(known: Tensor, unknown: Tensor) -> Tensor:
    """Return `min over types of (f_known - f_unknown)` for every latent, `[d_sae]`.

    f is the firing frequency at the entity's last token. After Ferrando et al. 2024 (arXiv 2411.14257), who take the
    latents with the largest value, and with opposite signs the unknown latents.

    Args:
        known, unknown (Tensor): `[types, d_sae]`, frequencies per entity type.
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
    """Return the best latents of each kind.

    Args:
        known, unknown (Tensor): `[types, d_sae]`, firing frequencies on known and unknown entities, per type.
        generic (Tensor or None): `[d_sae]`, firing frequency on tokens of ordinary text. None skips this filter.
        num_known, num_unknown (int): Number of latents of each kind. Fewer are returned if fewer have a score above 0.
        max_generic (float, *optional*, defaults to 0.02): Latents that fire on a larger share of ordinary tokens are
            left out.

    Raises:
        AlignmentError: If no latent of either kind is left.
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
            f"sae, max_generic_frequency={max_generic:g}: expected a latent that separates known from unknown "
            "entities in "
            "every type, got none. Use an SAE of a middle layer, more entities, fewer types, or sae=None."
        )
    return Latents(known_ids, unknown_ids, known_values, unknown_values)


class LatentCodes(nn.Module):
    """Pre-activations of selected latents, known latents first.

        codes = h @ W_enc[:, ids] + b_enc[ids]

    with the normalized `h` if the SAE has an `input_norm`. Only the selected columns are kept. Codes are
    pre-activations and not activations, since an inactive latent passes no gradient. They are computed in float32
    whatever the model's dtype, outside of autocast.

    Args:
        sae (SparseAutoencoder): The SAE.
        latents (Latents): The selected latents.

    Attributes:
        known (slice): Columns of the known latents.
        unknown (slice): Columns of the unknown latents.
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
        """Return the codes `[..., n]` of the residual stream `[..., d_in]`."""
        with torch.autocast(h.device.type, enabled=False):
            x = layer_normed(h.float())[0] if self.normed else h.float()
            return x @ self.W_enc + self.b_enc


class RawCodes(nn.Module):
    """The hidden states themselves as codes: the control without an SAE.

        codes = (h * sign)[order],   sign = sign(mean known - mean unknown)

    Each dimension's sign is set so that larger is more known. Dimensions are ordered by the distance of the means in
    units of the unknown entities' spread, so that the first `num_known` columns separate best. The loss on these codes
    is the same as on latents.

    Args:
        known, unknown (Tensor): `[rows, d_in]`, base states of known and unknown entities.
        num_known (int): Number of columns that count as known.
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
        """Return the codes `[..., d_in]` of the residual stream `[..., d_in]`."""
        return h.float()[..., self.order] * self.sign


@dataclass(frozen=True)
class Separation:
    """Area under the ROC curve on held-out entities, known against unknown. 0.5 is chance, 1 is perfect.

    Attributes:
        known (float or None): AUC of the known latents alone. None without known latents.
        unknown (float or None): AUC of the unknown latents alone (lower is more known). None without unknown latents.
        both (float): AUC of both together.
        num_known, num_unknown (int): Held-out entities of each kind.
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
        """Return the fields by name."""
        return asdict(self)

    def require(self, minimum: float) -> None:
        """Raise unless some codes separate known from unknown entities.

        Args:
            minimum (float): Smallest AUC.

        Raises:
            AlignmentError: If no group of codes reaches `minimum`.
        """
        if self.best < minimum:
            raise AlignmentError(
                f"min_separation={minimum:g}: expected that AUC on {self.num_known} known and "
                f"{self.num_unknown} unknown "
                f"held-out entities, got {self.best:.2f} (known latents {_shown(self.known)}, unknown latents "
                f"{_shown(self.unknown)}). Use a middle layer, or label the entities with this model."
            )


def knownness(codes: Tensor, known: slice, unknown: slice) -> Tensor:
    """Return the mean of the known codes minus the mean of the unknown ones: `[rows, n] -> [rows]`.

    Codes and result are in standard units.
    """
    score = torch.zeros_like(codes[:, 0])
    if known.stop > known.start:
        score = score + codes[:, known].mean(dim=-1)
    if unknown.stop > unknown.start:
        score = score - codes[:, unknown].mean(dim=-1)
    return score


def mean_per_entity(values: Tensor, entity: Tensor) -> Tensor:
    """Return the mean over the rows of each entity: `[rows, ...] -> [entities, ...]`.

    Entities are in the order of their numbers.
    """
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
    """Return the AUC on held-out entities, each judged by the mean over its prompts.

    Args:
        known_codes, unknown_codes (Tensor): `[rows, n]` in standard units, of known and unknown entities.
        known_entity, unknown_entity (Tensor): `[rows]`, number of each row's entity.
        known, unknown (slice): Columns of known and unknown latents.
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
