"""Metrics of targets against known and unknown entities, before and after training."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_unlearn.alignment.latents import knownness, mean_per_entity
from sae_unlearn.alignment.reference import AlignmentSetting
from sae_unlearn.alignment.states import States
from sae_unlearn.stats import auc


COLLAPSED = 0.5


def variance_ratio(z: Tensor, group: Tensor, scale: Tensor) -> float:
    """Return the mean over codes of var(targets) / var(unknown), within (type, template).

    Near 1, targets spread as unknown entities do. Below 0.5 they have collapsed toward one point, which a refitted
    probe would separate from unknown entities.

    Args:
        z (Tensor): `[rows, n]`, codes of the targets.
        group (Tensor): `[rows]`, number of each row's (type, template).
        scale (Tensor): `[rows, n]`, standard deviation of the unknown entities.

    Returns:
        float: The ratio. NaN if no template has two targets.
    """
    ratios, weights = [], []
    for one in group.unique():
        rows = group == one
        if int(rows.sum()) > 1:
            ratios.append((z[rows].var(dim=0) / scale[rows][0].square()).mean())
            weights.append(int(rows.sum()) - 1)
    if not ratios:
        return float("nan")
    weight = torch.tensor(weights, dtype=z.dtype, device=z.device)
    return float((torch.stack(ratios) * weight).sum() / weight.sum())


@dataclass(frozen=True)
class Portrait:
    """Places of known, unknown and target entities, each as the mean over held-out templates.

    Every entity has two coordinates: the mean of its known latents and the mean of its unknown latents, in standard
    units of the unknown entities, whose own mean is (0, 0). Without an SAE the second is 0.

    Attributes:
        known, unknown: Held-out entities in the base model.
        before, after: The targets, in the base model and with the adapter.
    """

    known: list[tuple[float, float]]
    unknown: list[tuple[float, float]]
    before: list[tuple[float, float]]
    after: list[tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return the portrait as a mapping that JSON can hold."""
        return asdict(self)


def portrait_of(setting: AlignmentSetting, before: States, after: States) -> Portrait:
    """Return the portrait of targets from their states without and with the adapter.

    The states are in held-out templates.
    """
    known, unknown = (_held_out(setting, known, before.group) for known in (True, False))
    return Portrait(*(_points(setting, states) for states in (known, unknown, before, after)))


def judge(setting: AlignmentSetting, targets: States) -> dict[str, float]:
    """Return metrics of targets from their states.

    Returns:
        `known_auc`: the probability that a target looks more known than a held-out unknown entity; 0.5 is
        indistinguishable. `variance_ratio`: see `variance_ratio`.
    """
    looks = [_knownness(setting, states) for states in (targets, _held_out(setting, False, targets.group))]
    scale = setting.statistics.scale[targets.group]
    return {
        "known_auc": auc(*looks),
        "variance_ratio": variance_ratio(setting.code(targets.h), targets.group, scale),
    }


def _held_out(setting: AlignmentSetting, known: bool, group: Tensor) -> States:
    """Held-out references of one side in the templates of `group`."""
    rows = setting.reference_rows(known, held_out=True)
    rows = rows[torch.isin(setting.states.group[rows], group)]
    return States(*(part[rows] for part in setting.states))


def _knownness(setting: AlignmentSetting, states: States) -> Tensor:
    z = setting.standardized(setting.code(states.h), states.group)
    return mean_per_entity(knownness(z, setting.code.known, setting.code.unknown), states.entity)


def _points(setting: AlignmentSetting, states: States) -> list[tuple[float, float]]:
    z = setting.standardized(setting.code(states.h), states.group)
    sides = [z[:, part].mean(dim=1) if part.stop > part.start else z.new_zeros(len(z)) for part in _sides(setting)]
    return [(x, y) for x, y in mean_per_entity(torch.stack(sides, dim=1), states.entity).tolist()]


def _sides(setting: AlignmentSetting) -> tuple[slice, slice]:
    return setting.code.known, setting.code.unknown


class Way(NamedTuple):
    """Remainder of the way from a target's state to that of its unknown entity.

    Attributes:
        left (float): Projection of the remaining difference on the way: 1 at the base, 0 at the unknown entity or next
            to it, negative beyond it.
        error (float): Size of the remaining difference in units of the way: 1 at the base, 0 only at the unknown
            entity.
    """

    left: float
    error: float


def way_left(h: Tensor, unknown: Tensor, base: Tensor, spread: Tensor) -> Way:
    """Return the remainder of the way, over all rows and in units of `spread`.

        left  = sum_t <h_t - u_t, b_t - u_t> / sum_t |b_t - u_t|^2
        error = sqrt(sum_t |h_t - u_t|^2 / sum_t |b_t - u_t|^2)

    Args:
        h, unknown, base (Tensor): `[rows, d]`, present states, states of the paired unknown entities, and states of the
            targets in the base model.
        spread (Tensor): `[d]`, unit of each dimension, such as the standard deviation of unknown entities.
    """
    rest, way = (h - unknown) / spread, (base - unknown) / spread
    length = way.square().sum().clamp(min=1e-30)
    return Way(float((rest * way).sum() / length), float((rest.square().sum() / length).sqrt()))
