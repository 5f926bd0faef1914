"""A probe of the base model for "it knows this entity", read on what an adapter has changed.

Can a discriminator that is trained anew tell the targets from entities the model never knew?

A probe of the base model is passed by what suppression does too: turn the one direction that it reads. Only if a
discriminator cannot be trained on the tuned model's own targets and unknowns are the targets among the unknowns.

The classifiers that probes and discriminators are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sae_unlearn.checks import check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate, pair_auc
from sae_unlearn.install import install_command
from sae_unlearn.stats import pair_wins
from sae_unlearn.tensor_checks import check_tensors


if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


Kind = Literal["linear", "kernel"]


def classifier(kind: Kind) -> Pipeline:
    """A classifier of standardized rows, for a handful of entities in hundreds of dimensions.

    `linear` is logistic regression so strongly regularised (C = 0.01) that it leans on the difference of the means, as
    little else can be learnt from so few. `kernel` is a support vector machine with a Gaussian kernel one standard
    deviation wide per dimension. Both weight the classes alike.

    Raises:
        ImportError: scikit-learn is not installed.
        UnlearnError: an unknown kind.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(f"probes need scikit-learn; run: {install_command('eval')}") from error
    if kind == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced"))
    if kind == "kernel":
        return make_pipeline(StandardScaler(), SVC(kernel="rbf", gamma="scale", class_weight="balanced"))
    raise UnlearnError(f"kind={kind!r}: expected 'linear' or 'kernel'.")


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


@dataclass(frozen=True)
class Discrimination:
    """AUC of a re-fitted discriminator and what it is to be compared with, all from groups of `n` against `n`.

    Attributes:
        kind: the discriminator.
        n: entities on each side.
        targets: targets against unknown entities.
        floor: unknown entities against other unknown ones: what nothing to find looks like.
        ceiling: known entities against unknown ones: what nothing forgotten looks like.
    """

    kind: Kind
    n: int
    targets: Estimate
    floor: Estimate
    ceiling: Estimate

    @property
    def position(self) -> float:
        """Where the targets are between floor (0) and ceiling (1); NaN if the ceiling is not above the floor."""
        width = self.ceiling.value - self.floor.value
        return (self.targets.value - self.floor.value) / width if width > 0 else float("nan")


def refit_discriminator(
    targets: Tensor,
    known: Tensor,
    unknown: Tensor,
    kind: Kind = "linear",
    n: int | None = None,
    folds: int = 5,
    repeats: int = 16,
    seed: int = 0,
) -> Discrimination:
    """Train discriminators anew on targets against unknowns, and place their AUC between a floor and a ceiling.

    Groups of `n` entities against `n` others are drawn `repeats` times. In each, both sides are cut into folds; for
    every fold of the one side with every fold of the other, a discriminator is trained on all other entities of both
    and scores the held-out ones, the mean over an entity's templates: no entity is on both sides of that cut. The AUC
    is the share of pairs in the right order, both held out from the discriminator that scores them. (Scores pooled from
    different discriminators would give less than 0.5 where there is nothing to find: who is held out is missing from
    the mean of its side.)

    The intervals are bootstraps over entities, whose pairs are drawn again with them. The discriminators are not
    trained again, so they are a little narrow.

    Args:
        targets, known, unknown: `[entities, templates, d]`, as many templates and dimensions in all: states of the
            tuned model, or latent codes of them. Known and unknown entities are ones that no training has seen.
        kind: `linear` finds a shift. `kernel` also finds targets that lie too close together, which no linear
            discriminator can when they have collapsed onto the unknowns' mean.
        n: entities on each side; by default as many as there are targets, where the others suffice for it.
        folds: of each side; n of them, or more, leave out one pair at a time.

    Raises:
        UnlearnError: fewer than four entities on a side, or shapes that do not fit.
        ImportError: scikit-learn is not installed.
    """
    shapes = {"targets": targets.shape[1:], "known": known.shape[1:], "unknown": unknown.shape[1:]}
    if len(set(shapes.values())) > 1:
        found = {name: list(shape) for name, shape in shapes.items()}
        raise UnlearnError(f"[templates, d]={found}: expected equal ones. Read all with the same templates and layer.")
    most = min(len(targets), len(known), len(unknown) // 2)
    n = most if n is None else n
    if not 4 <= n <= most:
        raise UnlearnError(
            f"n={n}: expected 4 to {most} entities on each side, got targets={len(targets)}, known={len(known)}, "
            f"unknown={len(unknown)}. The floor takes two groups of unknown ones."
        )

    def auc(first: Tensor, second: Tensor | None) -> Estimate:
        return _refitted_auc(first, second, n, kind, folds, repeats, seed)

    return Discrimination(kind, n, auc(targets, unknown), auc(unknown, None), auc(known, unknown))


def _refitted_auc(
    first: Tensor, second: Tensor | None, n: int, kind: Kind, folds: int, repeats: int, seed: int
) -> Estimate:
    """AUC of `first` against `second`, or, where that is None, against others of `first` itself."""
    generator = torch.Generator().manual_seed(seed)
    others = first if second is None else second
    wins = torch.zeros(len(first), len(others), dtype=torch.float64)
    counts = torch.zeros_like(wins)
    for _ in range(repeats):
        drawn = torch.randperm(len(first), generator=generator)
        a = drawn[:n]
        b = drawn[n : 2 * n] if second is None else torch.randperm(len(others), generator=generator)[:n]
        for out_a, out_b in _fold_pairs(n, folds):
            scores = _held_out_scores(first[a], others[b], out_a, out_b, kind)
            where = (a[out_a][:, None], b[out_b][None])
            wins[where] += pair_wins(*scores)
            counts[where] += 1
    return pair_auc(wins, counts, same=second is None, seed=seed)


def _fold_pairs(n: int, folds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every fold of the one side with every fold of the other, as indices; each pair of entities comes once."""
    parts = torch.arange(n).tensor_split(min(folds, n))
    for a in parts:
        for b in parts:
            yield a, b


def _held_out_scores(first: Tensor, second: Tensor, out_a: Tensor, out_b: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Train on `first` and `second [n, templates, d]` but for what is held out; scores of that, one per entity."""
    keep_a, keep_b = torch.ones(len(first), dtype=torch.bool), torch.ones(len(second), dtype=torch.bool)
    keep_a[out_a] = keep_b[out_b] = False
    train = torch.cat([first[keep_a], second[keep_b]]).double()
    # what a template adds to every entity tells no two apart, and would be the largest variance
    offset = train.mean(dim=0)
    templates = train.shape[1]
    labels = [1] * (int(keep_a.sum()) * templates) + [0] * (int(keep_b.sum()) * templates)
    model = classifier(kind).fit((train - offset).flatten(0, 1).numpy(), labels)
    held_out = torch.cat([first[out_a], second[out_b]]).double() - offset
    scores = torch.from_numpy(model.decision_function(held_out.flatten(0, 1).numpy()))
    of_entity = scores.unflatten(0, (-1, templates)).mean(dim=1)
    return of_entity[: len(out_a)], of_entity[len(out_a) :]
