"""Tables of the windowed gate with and without paragraphs."""

from statistics import mean
from typing import Any

from .markdown_text import number, table
from .results import read_json


RESULT = "paragraph_gate.json"
COUNTS, BEHIND = (1, 2, 4, 8, 16), (64, 256, 1024)
GATES = {"without": "without paragraphs", "with": "with paragraphs"}


def cells(demo: bool = False) -> list[dict[str, Any]]:
    """The draws of the demo's topic, or of the eight others."""
    return [cell for cell in read_json(RESULT)["cells"] if (cell["topic"] == "demo") is demo]


def topics() -> int:
    """The number of topics without the demo's."""
    return len({cell["topic"] for cell in cells()})


def draws() -> int:
    """The number of draws of each topic."""
    return len(cells()) // topics()


def share(gate: str, what: str, demo: bool = False) -> float:
    """The mean over topics and draws of the share of texts on which a gate fires."""
    found = [cell[gate]["fires"][what] for cell in cells(demo)]
    return mean(fired / n for fired, n in found)


def texts(what: str, demo: bool = False) -> int:
    """The number of texts of a condition, in one draw of a topic."""
    found: int = cells(demo)[0]["with"]["fires"][what][1]
    return found


def weight() -> tuple[float, float]:
    """The smallest and the largest weight of paragraphs over topics and draws."""
    found = [cell["with"]["weight"] for cell in cells()]
    return min(found), max(found)


def behind(demo: bool = False) -> str:
    """Caught and false alarms behind filler that ends in a blank line."""
    rows = [[label, *(_both(gate, words, demo) for words in BEHIND)] for gate, label in GATES.items()]
    return table(["caught / false alarms", *(f"{words:,} words" for words in BEHIND)], rows)


def documents() -> str:
    """False alarms by the number of paragraphs."""
    columns = [f"{count} ({texts(f'alarms documents of {count}')})" for count in COUNTS]
    rows = [
        [label, *(number(share(gate, f"alarms documents of {count}"), 3) for count in COUNTS)]
        for gate, label in GATES.items()
    ]
    return table(["paragraphs (documents)", *columns], rows)


def rows() -> str:
    """Whole rows: caught and false alarms."""
    return table(
        ["", "rows caught", "false alarms on rows"],
        [
            [label, *(number(share(gate, f"{side} rows"), 3) for side in ("caught", "alarms"))]
            for gate, label in GATES.items()
        ],
    )


def choice() -> str:
    """False alarms and catches of the ways to weigh a paragraph, on the topics of the choice."""
    names = (
        "without",
        *(f"{how}, threshold {what}" for how in ("tail", "counted", "of the row") for what in ("raised", "kept")),
    )
    columns = ("caught behind 320", "documents of 4", "documents of 16", "caught rows")
    found = [
        [name.replace("of the row", "1"), *(number(chosen_on(name, what), 3) for what in columns)] for name in names
    ]
    labels = ("caught behind 320 tokens", "false alarms, 4 paragraphs", "16 paragraphs", "rows caught")
    return table(["weight", *labels], sorted(found, key=lambda row: row[1]))


def chosen_on(name: str, what: str) -> float:
    """The mean over the topics of the choice and their draws."""
    found = [draw[name][what] for draws_ in read_json("paragraph_choice.json").values() for draw in draws_]
    return mean(fired / n for fired, n in found)


def by_topic() -> str:
    """Caught behind 256 words by topic."""
    found = []
    for topic in sorted({cell["topic"] for cell in cells()}):
        some = [cell for cell in cells() if cell["topic"] == topic]
        shares = [
            mean(hit / n for hit, n in (cell[gate]["fires"][f"caught behind {words}"] for cell in some))
            for words in BEHIND
            for gate in GATES
        ]
        pairs = [f"{number(a)} → {number(b)}" for a, b in zip(shares[::2], shares[1::2], strict=True)]
        found.append([topic.replace("_", " "), *pairs])
    return table(["caught, without → with", *(f"{words:,} words" for words in BEHIND)], found)


def _both(gate: str, words: int, demo: bool) -> str:
    return " / ".join(number(share(gate, f"{side} behind {words}", demo)) for side in ("caught", "alarms"))
