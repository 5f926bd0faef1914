"""States of entities in a model, and statistics of their codes for each type and template."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.alignment.prompts import PromptRow
from sae_unlearn.backbone.residual_stream import residual_batches


_SMALLEST_SPREAD = 0.01  # of the median spread: a constant code must not dominate the loss


class States(NamedTuple):
    """Residual stream at the last token of entities' names.

    Attributes:
        h (Tensor): `[rows, d_in]` in float32.
        entity (Tensor): `[rows]`, number of the entity in its set.
        group (Tensor): `[rows]`, number of the (type, template).
    """

    h: Tensor
    entity: Tensor
    group: Tensor

    def of(self, entities: Sequence[int]) -> "States":
        """Return the rows of some entities, with their numbers unchanged."""
        wanted = torch.tensor(list(entities), dtype=torch.long, device=self.entity.device)
        keep = torch.isin(self.entity, wanted)
        return States(self.h[keep], self.entity[keep], self.group[keep])

    def to(self, device: torch.device | str) -> "States":
        return States(*(part.to(device) for part in self))


def entity_states(model: nn.Module, rows: Sequence[PromptRow], layer: int, batch_size: int) -> States:
    """Return the states of `rows` after `layer`, in their order, by one truncated forward pass.

    Args:
        model (nn.Module): The bare transformers model. Adapters on it stay as they are.
        rows (sequence of PromptRow): The prompts.
        layer (int): 0-based index of the layer.
        batch_size (int): Rows per forward pass.
    """
    states: dict[int, Tensor] = {}
    for batch in residual_batches(model, [row.input_ids for row in rows], layer, batch_size):
        last = batch.kept.sum(dim=1) - 1
        states |= dict(zip(batch.index, batch.residual[torch.arange(len(last)), last].float(), strict=True))
    h = torch.stack([states[i] for i in range(len(rows))])
    device = h.device
    return States(
        h,
        torch.tensor([row.entity for row in rows], device=device),
        torch.tensor([row.group for row in rows], device=device),
    )


class Statistics(NamedTuple):
    """Statistics of unknown and known entities' codes, per (type, template).

    Attributes:
        unknown_mean, known_mean (Tensor): `[groups, n]`.
        limit (Tensor): `[groups, n]`, the unknown entities' 95th percentile.
        scale (Tensor): `[groups, n]`, the unknown entities' standard deviation within a template, one value per type.
    """

    unknown_mean: Tensor
    known_mean: Tensor
    limit: Tensor
    scale: Tensor


def code_statistics(
    unknown: Tensor, unknown_group: Tensor, known: Tensor, known_group: Tensor, type_of_group: Sequence[int]
) -> Statistics:
    """Return the statistics of every group that has unknown rows.

    Those of other groups are NaN, so that a mistake shows.

    Args:
        unknown, known (Tensor): Codes `[rows, n]`.
        unknown_group, known_group (Tensor): `[rows]`.
        type_of_group (sequence of int): Number of each group's type.
    """
    shape = (len(type_of_group), unknown.shape[1])
    unknown_mean, known_mean, limit, scale = (unknown.new_full(shape, float("nan")) for _ in range(4))
    types = torch.tensor(list(type_of_group), device=unknown.device)
    for group in unknown_group.unique().tolist():
        rows = unknown[unknown_group == group]
        unknown_mean[group] = rows.mean(dim=0)
        limit[group] = rows.quantile(0.95, dim=0)
        if bool((known_group == group).any()):
            known_mean[group] = known[known_group == group].mean(dim=0)
    for kind in types.unique():
        mine = types[unknown_group] == kind
        if bool(mine.any()):
            within = unknown[mine] - unknown_mean[unknown_group[mine]]
            spread = within.square().mean(dim=0).sqrt()
            scale[types == kind] = spread.clamp(min=max(float(spread.median()) * _SMALLEST_SPREAD, 1e-12))
    return Statistics(unknown_mean, known_mean, limit, scale)
