"""Where known, unknown and target entities stand, before and after training."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.alignment.collapse import variance_ratio
from sae_unlearn.alignment.reference import AlignmentSetting
from sae_unlearn.alignment.references import States
from sae_unlearn.alignment.separation import knownness, mean_per_entity
from sae_unlearn.stats import auc


@dataclass(frozen=True)
class Portrait:
    """How known entities look, each by the mean over templates that training never used.

    Every entity has two coordinates: the mean of its known latents and the mean of its unknown latents, in standard
    units of the unknown entities, whose own mean is (0, 0). Without an SAE the second is 0 throughout.

    Attributes:
        known, unknown: held-out entities in the base model.
        before, after: the targets, in the base model and with the adapter.
    """

    known: list[tuple[float, float]]
    unknown: list[tuple[float, float]]
    before: list[tuple[float, float]]
    after: list[tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def portrait_of(setting: AlignmentSetting, before: States, after: States) -> Portrait:
    """The portrait of targets from their states without and with the adapter, in held-out templates."""
    known, unknown = (_held_out(setting, known, before.group) for known in (True, False))
    return Portrait(*(_points(setting, states) for states in (known, unknown, before, after)))


def judge(setting: AlignmentSetting, targets: States) -> dict[str, float]:
    """Metrics of targets by their states.

    Returns:
        `known_auc`: the probability that a target looks more known than a held-out unknown entity; 0.5 is
        indistinguishable. `variance_ratio`: see `sae_unlearn.alignment.collapse`.
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
    z = setting.standardised(setting.code(states.h), states.group)
    return mean_per_entity(knownness(z, setting.code.known, setting.code.unknown), states.entity)


def _points(setting: AlignmentSetting, states: States) -> list[tuple[float, float]]:
    z = setting.standardised(setting.code(states.h), states.group)
    sides = [z[:, part].mean(dim=1) if part.stop > part.start else z.new_zeros(len(z)) for part in _sides(setting)]
    return [(x, y) for x, y in mean_per_entity(torch.stack(sides, dim=1), states.entity).tolist()]


def _sides(setting: AlignmentSetting) -> tuple[slice, slice]:
    return setting.code.known, setting.code.unknown
