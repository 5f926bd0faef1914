"""Tables of the methods that make a taught model forget TOFU and LUME, from `rivals.json`."""

from typing import Any

from .markdown_text import figure, number, percent, table
from .results import read_json


RESULT = "rivals.json"
TITLES = {"tofu": "TOFU", "lume": "LUME"}
ATTACKS = {"filler": "behind filler", "paraphrased": "in other words", "relearned": "after relearning"}
KEPT = {"retain": "retain", "real_authors": "real authors", "world_facts": "world facts"}


def sets() -> list[str]:
    """The sets of which every method was measured."""
    return list(read_json(RESULT))


def methods(name: str) -> list[dict[str, Any]]:
    """The figures of each method on a set, the taught model first."""
    return read_json(RESULT)[name]["methods"]


def rouge(found: dict[str, Any], part: str) -> float:
    """The mean ROUGE-L recall of a method's answers to a part's questions."""
    return found[part]["rouge"]["value"]


def left(found: dict[str, Any]) -> float:
    """ROUGE-L on the forget questions, plain or under the attack that brings back most."""
    return max(rouge(found, part) for part in ("forget", *ATTACKS))


def best(name: str) -> dict[str, Any]:
    """Of the methods that are within the budget and keep utility, the one with the least left."""
    able = [found for found in methods(name)[1:] if found["within"] and found["utility_kept"]]
    return min(able or methods(name)[1:], key=left)


def answer(name: str) -> str:
    """One sentence on a set."""
    base, found = methods(name)[0], best(name)
    return (
        f"On {TITLES[name]} {found['method']} leaves least: ROUGE-L {number(rouge(found, 'forget'))} of "
        f"{number(rouge(base, 'forget'))}, and {number(left(found))} under the attack that brings back most."
    )


def answers() -> str:
    """The page's answer."""
    return " ".join(map(answer, sets()))


def forgetting(name: str) -> str:
    """What each method leaves of the forget questions, and of everything else."""
    header = ["method", "strength", "forget", "answer's probability", *KEPT.values(), "MMLU", "utility kept"]
    rows = [
        [
            found["method"],
            "" if found["strength"] is None else f"{found['strength']:g}" + ("" if found["within"] else " (over)"),
            _interval(found, "forget"),
            number(found["forget"]["probability"]["value"]),
            *(number(rouge(found, part)) for part in KEPT),
            percent(found["mmlu"]["value"]),
            "yes" if found["utility_kept"] else "no",
        ]
        for found in methods(name)
    ]
    return table(header, rows)


def attacked(name: str) -> str:
    """What of the forget questions comes back."""
    rows = [
        [found["method"], number(rouge(found, "forget")), *(_interval(found, part) for part in ATTACKS)]
        for found in methods(name)
    ]
    return table(["method", "plain", *ATTACKS.values()], rows)


def said(name: str) -> str:
    """The first answer of each method to the first forget question."""
    rows = [[found["method"], " ".join(found["said"][0].split()).replace("|", "/")[:90]] for found in methods(name)]
    return table(["method", "answer"], rows, left=2)


def _interval(found: dict[str, Any], part: str) -> str:
    value = found[part]["rouge"]
    return figure(value["value"], value["low"], value["high"])
