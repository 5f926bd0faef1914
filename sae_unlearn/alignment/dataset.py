"""The rows of an alignment: a target, what it is compared with, and what is to stay.

Unknown entities to compare a known one with: of its type, and with a name about as long.

Names of small towns are longer than those of capitals. Without the matching, the length of a name alone would tell
known from unknown, and an alignment could move that.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sae_unlearn.alignment.entities import EntitySet, key_of
from sae_unlearn.alignment.prompts import PromptRow
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.errors import AlignmentError


def draw_pairs(matched: Sequence[Sequence[int]], count: int, seed: int) -> list[list[int]]:
    """`count` of the unknown entities that match it for every target, shared among targets as little as can be.

    Args:
        matched: for every target the unknown entities that match it.
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
    """One item for each target, template and draw; every draw is fixed by the seed and the item's number, so that a
    resumed run, another batch size and several processes meet the same items.

    An item holds a target's prompt (`input_ids`), the numbers of a paired unknown entity's and a known entity's prompt
    in the same template (`pair`, `contrast`: rows of the references), a prompt of a known or an unknown entity
    whose hidden state is to stay (`still_ids`, and `still`: its row in the references), and a row on which predictions
    are to stay (`retain_ids`, with the places where they are compared, `retain_at`).

    Args:
        targets: the targets' prompts.
        references: prompts of known and unknown entities that may be drawn.
        numbers: row of each of `references` in the table of reference states.
        is_known: whether each of `references` is of a known entity.
        pairs: for every target the unknown entities (their numbers) that it is paired with, in turn.
        retain: token rows on which predictions are to stay; may be empty.
        draws: items per target and template.
        positions: how many places of a retain row are compared; None is all.
        seed: of the draws.
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
        """The last place of a row and others at random, never its first, which every row begins with alike. None of no
        row."""
        if length < 2 or self._positions is None or self._positions >= length - 1:
            return list(range(int(length > 1), length))
        return [*draw.sample(range(1, length - 1), self._positions - 1), length - 1]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Items as tensors: token rows right-padded with 0 and with their masks, numbers `[batch]`."""
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
    """For every target the indices in `unknown` of entities of its type, the nearest in name length (characters) first.

    Among equally near ones the order is random, for each target its own, so that not all are compared with the same
    few. Entities that share a name with the target are left out.

    Args:
        targets, unknown: the entities.
        per_target: how many at most; None for all of the type.
        seed: of the order among equally near ones.

    Raises:
        AlignmentError: `unknown` has none for a target, or `per_target` is below 1.
    """
    if per_target is not None and per_target < 1:
        raise AlignmentError(f"per_target={per_target}; expected at least 1, or None for all of the type.")
    lengths = [len(entity.entity) for entity in unknown]
    of_type: dict[str, list[int]] = {}
    for i, entity in enumerate(unknown):
        of_type.setdefault(key_of(entity.entity_type), []).append(i)
    matched = []
    for target in targets:
        near = [i for i in of_type.get(key_of(target.entity_type), []) if not unknown[i].keys & target.keys]
        if not near:
            raise AlignmentError(
                f"There is no unknown entity of type {target.entity_type!r} to match {target.entity!r} with (types "
                f"there: {unknown.types}); add some, or leave these targets out."
            )
        random.Random(f"{seed} {target.entity}").shuffle(near)
        own = len(target.entity)
        near.sort(key=lambda i: abs(lengths[i] - own))  # stable: equally near ones stay shuffled
        matched.append(near[:per_target])
    return matched
