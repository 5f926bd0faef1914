"""Do latents that no training looked at follow?"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_unlearn.checks import check_counts, check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.tensor_checks import check_tensors


@dataclass(frozen=True)
class HeldOutFiring:
    """How often a group of latents fires on entities, the mean over entities of the share of (template, latent).

    Attributes:
        ids: the latents.
        targets: on the targets, tuned.
        known: on known entities.
        unknown: on unknown entities; the goal of `targets`.
    """

    ids: list[int]
    targets: Estimate
    known: Estimate
    unknown: Estimate

    @property
    def position(self) -> float:
        """Where the targets are between unknown (0) and known (1); NaN if those fire alike."""
        width = self.known.value - self.unknown.value
        return (self.targets.value - self.unknown.value) / width if width else float("nan")


def held_out_latents(
    sae: SparseAutoencoder, known: Tensor, unknown: Tensor, trained_on: Collection[int], number: int = 32
) -> tuple[list[int], list[int]]:
    """The latents that tell known from unknown best, but for those that were trained on.

    The score is the one of Ferrando et al. (arXiv 2411.14257): firing frequency on known minus on unknown entities.

    Args:
        known, unknown: `[entities, templates, d_in]`: states of training entities in the base model; the firing is to
            be read on others, or chance would pass for a difference.
        trained_on: ids to leave out.
        number: of latents of each sort, at most.

    Returns:
        Ids that fire more on known entities, and ids that fire more on unknown ones, best first.
    """
    check_is(sae, SparseAutoencoder, "sae")
    check_tensors(3, known=known, unknown=unknown)
    check_counts(number=number)
    score = _firing(sae, known).mean(dim=0) - _firing(sae, unknown).mean(dim=0)
    score[list(trained_on)] = 0
    order = score.argsort(descending=True, stable=True).tolist()
    known_ids = [i for i in order[:number] if score[i] > 0]
    unknown_ids = [i for i in reversed(order[-number:]) if score[i] < 0]
    return known_ids, unknown_ids


def held_out_firing(
    sae: SparseAutoencoder, ids: list[int], targets: Tensor, known: Tensor, unknown: Tensor, seed: int = 0
) -> HeldOutFiring:
    """Read the latents `ids` on targets of the tuned model, and on known and unknown entities.

    Args:
        targets, known, unknown: `[entities, templates, d_in]`.

    Raises:
        UnlearnError: no latents, or one that the SAE has not.
    """
    if not ids:
        raise UnlearnError("ids=[]: expected latents. None that was left out separates known from unknown.")

    check_is(sae, SparseAutoencoder, "sae")
    check_tensors(3, targets=targets, known=known, unknown=unknown)
    wrong = [i for i in ids if not 0 <= i < sae.d_sae]
    if wrong:
        raise UnlearnError(f"ids={wrong[0]}: expected 0 to {sae.d_sae - 1}, the latents of the SAE.")

    def firing(states: Tensor) -> Estimate:
        return Estimate.mean(_firing(sae, states)[:, ids].mean(dim=1), seed)

    return HeldOutFiring(list(ids), firing(targets), firing(known), firing(unknown))


@torch.no_grad()
def _firing(sae: SparseAutoencoder, states: Tensor) -> Tensor:
    """`[entities, templates, d_in]` -> `[entities, d_sae]`: the share of templates in which each latent fires."""
    parts = states.split(32)  # codes of a few entities at a time: an SAE may have 65,536 latents
    return torch.cat([(sae.encode(part.to(sae.device)) > 0).float().mean(dim=1).cpu() for part in parts])
