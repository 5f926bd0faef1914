"""Whether the codes tell known from unknown entities that had no part in choosing them."""

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sae_unlearn.alignment.errors import AlignmentError
from sae_unlearn.stats import auc


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
