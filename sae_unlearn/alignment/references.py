"""What known and unknown entities look like in the base model: the fixed points of an alignment."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.alignment.prompts import PromptRow
from sae_unlearn.backbone.residual_stream import residual_batches


_SMALLEST_SPREAD = 0.01  # of the median spread: a code that never moves must not rule the loss


class States(NamedTuple):
    """Residual stream at the last token of entities' names.

    Attributes:
        h: `[rows, d_in]` in float32.
        entity: `[rows]`, number of the entity in its set.
        group: `[rows]`, number of the (type, template).
    """

    h: Tensor
    entity: Tensor
    group: Tensor

    def of(self, entities: Sequence[int]) -> "States":
        """The rows of some entities; their numbers stay."""
        wanted = torch.tensor(list(entities), dtype=torch.long, device=self.entity.device)
        keep = torch.isin(self.entity, wanted)
        return States(self.h[keep], self.entity[keep], self.group[keep])

    def to(self, device: torch.device | str) -> "States":
        return States(*(part.to(device) for part in self))


def entity_states(model: nn.Module, rows: Sequence[PromptRow], layer: int, batch_size: int) -> States:
    """The states of `rows` after `layer`, in their order, by one truncated forward pass.

    Args:
        model: the bare transformers model; adapters that are on it stay as they are.
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
    """Unknown and known entities' codes, per (type, template).

    Attributes:
        unknown_mean, known_mean: `[groups, n]`.
        limit: `[groups, n]`, the unknown entities' 95th percentile.
        scale: `[groups, n]`, the unknown entities' standard deviation within a template, one value per type.
    """

    unknown_mean: Tensor
    known_mean: Tensor
    limit: Tensor
    scale: Tensor


def code_statistics(
    unknown: Tensor, unknown_group: Tensor, known: Tensor, known_group: Tensor, type_of_group: Sequence[int]
) -> Statistics:
    """The statistics of every group that has unknown rows; others stay NaN, so that a mistake shows.

    Args:
        unknown, known: codes `[rows, n]`.
        unknown_group, known_group: `[rows]`.
        type_of_group: number of each group's type.
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
