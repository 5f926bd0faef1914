"""Training rows of an alignment: a target, its comparisons, and rows that should stay.

Unknown entities are matched to targets by type and length of the name. Names of small towns are longer than those of
capitals. Without the matching, the length of a name alone would separate known from unknown, and an alignment could
learn that.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import key_of
from sae_unlearn.alignment.prompts import PromptRow
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.checks import check_integer
from sae_unlearn.errors import AlignmentError


def draw_pairs(matched: Sequence[Sequence[int]], count: int, seed: int) -> list[list[int]]:
    """Return `count` of the matching unknown entities for every target.

    They are shared among targets as little as possible.

    Args:
        matched (sequence of sequence of int): Matching unknown entities of every target.
        count (int): Number for each target.
        seed (int): Seed of the draw.
    """
    draw = random.Random(seed)
    taken: dict[int, int] = {}
    pairs = []
    for candidates in matched:
        order = draw.sample(list(candidates), len(candidates))
        chosen = sorted(order, key=lambda one: taken.get(one, 0))[:count]
        for one in chosen:
            taken[one] = taken.get(one, 0) + 1
        pairs.append(chosen)
    return pairs


class AlignmentItems(Dataset[dict[str, Any]]):
    """One item for each target, template and draw.

    Every draw depends only on the seed and the item's number, so that a resumed run, another batch size and several
    processes get the same items. An item holds a target's prompt (`input_ids`); the numbers of a paired unknown
    entity's and a known entity's prompt in the same template (`pair`, `contrast`: rows of the references); a prompt of
    a known or an unknown entity whose hidden state should stay (`still_ids`, and `still`: its row in the references);
    and a row on which predictions should stay (`retain_ids`, with the compared places `retain_at`).

    Args:
        targets (sequence of PromptRow): Prompts of the targets.
        references (sequence of PromptRow): Prompts of known and unknown entities that may be drawn.
        numbers (sequence of int): Row of each of `references` in the table of reference states.
        is_known (sequence of bool): True for each of `references` of a known entity.
        pairs (sequence of sequence of int): Numbers of the unknown entities with which every target is paired in turn.
        retain (sequence of list of int): Token rows on which predictions should stay; may be empty.
        draws (int): Items per target and template.
        positions (int or None): Number of compared places of a retain row. None compares all.
        seed (int): Seed of the draws.
    """

    def __init__(
        self,
        targets: Sequence[PromptRow],
        references: Sequence[PromptRow],
        numbers: Sequence[int],
        is_known: Sequence[bool],
        pairs: Sequence[Sequence[int]],
        retain: Sequence[list[int]],
        draws: int,
        positions: int | None,
        seed: int,
    ) -> None:
        self.targets = list(targets)
        self._references = list(references)
        self._numbers = list(numbers)
        self._retain = list(retain)
        self._draws = draws
        self._positions = positions
        self._seed = seed
        unknown: dict[tuple[int, int], int] = {}
        self._known: dict[int, list[int]] = {}
        for place, (row, known) in enumerate(zip(references, is_known, strict=True)):
            if known:
                self._known.setdefault(row.group, []).append(place)
            else:
                unknown[row.group, row.entity] = place
        self._pairs = [[unknown[row.group, entity] for entity in pairs[row.entity]] for row in targets]
        sides = ([i for i, k in enumerate(is_known) if k], [i for i, k in enumerate(is_known) if not k])
        self._sides = [side for side in sides if side]

    @property
    def pair_numbers(self) -> list[list[int]]:
        """For each target's prompt the rows of its unknown entities in the table of reference states."""
        return [[self._numbers[place] for place in pairs] for pairs in self._pairs]

    def __len__(self) -> int:
        return len(self.targets) * self._draws

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, number = divmod(index, self._draws)
        target = self.targets[place]
        draw = random.Random(f"{self._seed}:{index}")
        still = draw.choice(self._sides[draw.randrange(len(self._sides))])
        retain = draw.choice(self._retain) if self._retain else []
        return {
            "input_ids": target.input_ids,
            "entity": target.entity,
            "group": target.group,
            "pair": self._numbers[self._pairs[place][number % len(self._pairs[place])]],
            "contrast": self._numbers[draw.choice(self._known[target.group])],
            "still_ids": self._references[still].input_ids,
            "still": self._numbers[still],
            "retain_ids": retain,
            "retain_at": self._places(len(retain), draw),
        }

    def _places(self, length: int, draw: random.Random) -> list[int]:
        """The last place of a row and random others, without its first, which is the same in every row.

        Empty for an empty row.
        """
        if length < 2 or self._positions is None or self._positions >= length - 1:
            return list(range(int(length > 1), length))
        return [*draw.sample(range(1, length - 1), self._positions - 1), length - 1]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return items as tensors: token rows right-padded with 0 and with their masks, numbers `[batch]`."""
    batch: dict[str, Tensor] = {}
    for ids, mask in (
        ("input_ids", "attention_mask"),
        ("still_ids", "still_mask"),
        ("retain_ids", "retain_mask"),
    ):
        batch[ids], kept = right_padded([item[ids] for item in items])
        batch[mask] = kept.long()
    batch["retain_at"] = torch.zeros_like(batch["retain_mask"], dtype=torch.bool)
    for i, item in enumerate(items):
        batch["retain_at"][i, item["retain_at"]] = True
    for name in ("entity", "group", "pair", "contrast", "still"):
        batch[name] = torch.tensor([item[name] for item in items])
    return batch


def match_unknown(
    targets: EntitySet,
    unknown: EntitySet,
    per_target: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Return the indices in `unknown` of entities of each target's type, nearest in name length first.

    Of equally near ones (in characters) the order is random for each target, so that not all are compared with the same
    few. Entities that share a name with the target are left out.

    Args:
        targets, unknown (EntitySet): The entities.
        per_target (int, *optional*): Largest number for each target. None for all of the type.
        seed (int, *optional*, defaults to 0): Seed of the order among equally near ones.

    Raises:
        AlignmentError: If `unknown` has none for a target, or `per_target` is below 1.
    """
    if per_target is not None:
        check_integer("per_target", per_target, 1, error=AlignmentError)
    lengths = [len(entity.entity) for entity in unknown]
    of_type: dict[str, list[int]] = {}
    for i, entity in enumerate(unknown):
        of_type.setdefault(key_of(entity.entity_type), []).append(i)
    matched = []
    for target in targets:
        near = [i for i in of_type.get(key_of(target.entity_type), []) if not unknown[i].keys & target.keys]
        if not near:
            raise AlignmentError(
                f"unknown: expected an entity of type {target.entity_type!r}, the type of {target.entity!r}, got types "
                f"{unknown.types}. Add some, or omit these targets."
            )
        random.Random(f"{seed} {target.entity}").shuffle(near)
        own = len(target.entity)
        near.sort(key=lambda i: abs(lengths[i] - own))  # stable: equally near ones stay shuffled
        matched.append(near[:per_target])
    return matched
