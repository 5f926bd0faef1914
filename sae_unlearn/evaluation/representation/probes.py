"""A probe of the base model for "it knows this entity", read on what an adapter has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_unlearn.checks import check_is, check_tensors
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.classifiers import classifier
from sae_unlearn.evaluation.pair_auc import pair_auc
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.stats import pair_wins


if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class BaseProbe:
    """Logistic regression, known against unknown, on states of the base model."""

    pipeline: Pipeline

    def p_known(self, states: Tensor) -> Tensor:
        """P(known), the mean over an entity's templates: `[entities, templates, d]` -> `[entities]` float64.

        Raises:
            UnlearnError: another shape.
        """
        check_tensors(3, states=states)
        width = int(self.pipeline.n_features_in_)
        if states.shape[2] != width:
            raise UnlearnError(f"states has width {states.shape[2]}; the probe was fitted on states of {width}.")
        found = self.pipeline.predict_proba(states.flatten(0, 1).double().numpy())[:, 1]
        return torch.from_numpy(found).unflatten(0, states.shape[:2]).mean(dim=1)


@dataclass(frozen=True)
class ProbeReading:
    """What a base probe makes of targets.

    Attributes:
        p_known: mean P(known) of the targets.
        auc: chance that a target looks more known than an unknown entity does. 0.5 is the goal; below it overshoots.
    """

    p_known: Estimate
    auc: Estimate


def fit_base_probe(known: Tensor, unknown: Tensor) -> BaseProbe:
    """Train the probe.

    Args:
        known, unknown: `[entities, templates, d]`: training entities in the base model; entities that are read later
            must not be among them.

    Raises:
        ImportError: scikit-learn is not installed.
        UnlearnError: other shapes, or a side without entities.
    """
    check_tensors(3, known=known, unknown=unknown)
    if not known.numel() or not unknown.numel():
        raise UnlearnError(f"{len(known)} known and {len(unknown)} unknown entities; pass at least one of each.")
    rows = torch.cat([known.flatten(0, 1), unknown.flatten(0, 1)]).double().numpy()
    labels = [1] * known[..., 0].numel() + [0] * unknown[..., 0].numel()
    return BaseProbe(classifier("linear").fit(rows, labels))


def read_base_probe(probe: BaseProbe, targets: Tensor, unknown: Tensor, seed: int = 0) -> ProbeReading:
    """P(known) of targets, and their AUC against unknown entities that the probe has not seen.

    A low P(known) alone is not forgetting: turning one direction is enough for it. `refit_discriminator` asks the rest.

    Args:
        targets, unknown: `[entities, templates, d]`, with the templates that the probe was trained on or others.
    """
    check_is(probe, BaseProbe, "probe")
    check_tensors(3, targets=targets, unknown=unknown)
    first, second = probe.p_known(targets), probe.p_known(unknown)
    return ProbeReading(Estimate.mean(first, seed), pair_auc(pair_wins(first, second), seed=seed))
