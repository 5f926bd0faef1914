"""Way of each target from its base state to that of its unknown entity, and its remainder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.dataset import AlignmentItems
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.metrics import way_left
from sae_unlearn.alignment.prompts import PromptRow, prompt_rows
from sae_unlearn.alignment.reference import AlignmentSetting
from sae_unlearn.alignment.states import States, entity_states


class Ways(NamedTuple):
    """Targets in prompts, with the ends of their ways.

    Attributes:
        rows (list of PromptRow): The prompts.
        base (Tensor): `[rows, d]`, the targets' states in the base model.
        unknown (Tensor): `[rows, d]`, states of the paired unknown entity in the same prompt, the mean if several.
    """

    rows: list[PromptRow]
    base: Tensor
    unknown: Tensor


class TargetWays:
    """The ways of the targets in the prompts of the training, and in those that training never uses.

    The unknown entities are those that a target is paired with in the training, in both.

    Args:
        targets (EntitySet): The targets.
        items (AlignmentItems): Their items of the training.
        setting (AlignmentSetting): The frozen references.
        model (nn.Module): The bare transformers model with its adapters disabled.
        tokenizer (PreTrainedTokenizerBase): The tokenizer.
        args (SAEAlignmentConfig): The settings.
    """

    def __init__(
        self,
        targets: EntitySet,
        items: AlignmentItems,
        setting: AlignmentSetting,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        args: SAEAlignmentConfig,
    ) -> None:
        self._setting = setting
        plan = setting.plan
        first = len(plan.known_rows)
        place = {(row.entity, row.group): first + i for i, row in enumerate(plan.unknown_rows)}
        partners = {
            row.entity: [plan.rows[i].entity for i in pairs]
            for row, pairs in zip(items.targets, items.pair_numbers, strict=True)
        }

        def ways(rows: Sequence[PromptRow]) -> Ways:
            base = entity_states(model, rows, setting.layer, args.reference_batch_size).h
            ends = [[place[entity, row.group] for entity in partners[row.entity]] for row in rows]
            unknown = torch.stack([setting.states.h[few].mean(dim=0) for few in ends])
            return Ways(list(rows), base.to(unknown.device), unknown)

        self.training = ways(items.targets)
        self.held_out = ways(prompt_rows(targets, tokenizer, plan.groups, True, args.chat_template))

    def judge(self, judged: AlignmentItems | None, states: States) -> dict[str, float]:
        """Return the remainder of the ways in held-out prompts, or {} for entities other than the targets.

        Args:
            judged (AlignmentItems): The evaluated set.
            states (States): The states of its targets.
        """
        held = self.held_out
        if judged is None or judged.targets != held.rows:
            return {}
        place = {(row.entity, row.group): i for i, row in enumerate(held.rows)}
        of = [place[key] for key in zip(states.entity.tolist(), states.group.tolist(), strict=True)]
        device = states.h.device
        unknown, base = held.unknown[of].to(device), held.base[of].to(device)
        way = way_left(states.h, unknown, base, self._setting.spread.to(device))
        return {"way_left": way.left, "way_error": way.error}
