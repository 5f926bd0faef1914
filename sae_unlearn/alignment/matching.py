"""Unknown entities to compare a known one with: of its type, and with a name about as long.

Names of small towns are longer than those of capitals. Without the matching, the length of a name alone would tell
known from unknown, and an alignment could move that.
"""

import random

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import key_of
from sae_unlearn.alignment.errors import AlignmentError


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
