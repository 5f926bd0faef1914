"""Which tests are too costly for the fast tier: the list `broad_tier.txt`."""

from itertools import combinations
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]
BROAD = TESTS / "broad_tier.txt"


def broad_tier() -> dict[str, int]:
    """The tests that are listed, as `folder/file.py::function`, and how many cases of each stay in the fast tier."""
    lines = [line.split() for line in BROAD.read_text(encoding="utf-8").splitlines()]
    return {line[2]: int(line[1]) for line in lines if line and line[0] != "#"}


def chosen(cases: list[dict[str, int]], number: int) -> set[int]:
    """Places of `number` of the cases, each a mapping from parameters to what tells their values apart.

    Each choice is the one that tries most values, and then most pairs of values, that those before it do not: every
    value of a product is tried if `number` is not below the number of its values. Ties go to cases spread evenly.
    """
    tried = [{frozenset(some) for n in (1, 2) for some in combinations(case.items(), n)} for case in cases]
    evenly = [i * len(cases) // number for i in range(number)]
    left, seen, found = [*evenly, *(i for i in range(len(cases)) if i not in set(evenly))], set(), set()
    for _ in range(number):
        new = {i: tried[i] - seen for i in left}
        best = max(left, key=lambda i: (sum(len(some) == 1 for some in new[i]), len(new[i])))
        found.add(best)
        left.remove(best)
        seen |= tried[best]
    return found
