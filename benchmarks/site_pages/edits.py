"""Tables of what is done where the gate fires."""

from statistics import mean
from typing import Any

from .markdown_text import number, percent, table
from .results import read_json


RESULT, DEMO, BARE = "edits.json", "demo", "bare model"
EDITS = ("clamp", "norm kept", "falling dose", "to zero", "refusal")


def cells(edit: str) -> list[dict[str, Any]]:
    """The cells of an edit, of all topics."""
    return [cell for cell in read_json(RESULT) if cell["edit"] == edit]


def cell(edit: str, topic: str = DEMO) -> dict[str, Any]:
    """The cell of an edit on a topic."""
    return next(found for found in cells(edit) if found["topic"] == topic)


def topics() -> list[str]:
    """The topics that were measured."""
    return [found["topic"] for found in cells("clamp")]


def forgotten(edit: str) -> float:
    """The mean change of loss on the topics' test texts, over topics, in nats per token."""
    return mean(found["test"]["change"]["value"] for found in cells(edit))


def gibberish(edit: str) -> tuple[int, int]:
    """The number of continuations that the rule calls gibberish, and of all."""
    said = [found["said"] for found in cells(edit)]
    return sum(one["gibberish"] for one in said), sum(one["n"] for one in said)


def gibberish_share(edit: str) -> str:
    """The same as a percentage."""
    found, n = gibberish(edit)
    return percent(found / n)


def recalled(edit: str) -> str:
    """The share of the demo's facts that are said."""
    return percent(cell(edit)["recall"]["forget"]["value"])


def trade_off() -> str:
    """Forgetting, damage and sense of each edit, over all topics, and the demo's facts."""
    rows = []
    for edit in (*EDITS, BARE):
        found = cells(edit)
        measured = ["–"] * 4
        if edit != BARE:
            changes = [mean(one[part]["change"]["value"] for one in found) for part in ("test", "other_test")]
            asked = [
                one[part]["change"]["value"] for part in ("choices", "other_choices") for one in found if one[part]
            ]
            half = len(asked) // 2
            choices = [mean(asked[:half]), mean(asked[half:])]
            measured = [number(change, 2, sign=True) for change in (*changes, *choices)]
        wrong, n = gibberish(edit)
        repeated = mean(share for one in found for share in one["said"]["repeated"])
        loss = mean(value for one in found for value in one["said"]["loss"])
        sense = ["–", "–", "–"] if edit == "refusal" else [number(loss), number(repeated), f"{wrong} of {n}"]
        within = "–" if edit == BARE else f"{sum(one['within'] for one in found)} of {len(found)}"
        rows.append([edit, within, *measured, recalled(edit), *sense])
    header = ["edit", "topics within", "topic, nats", "other, nats", "choices, topic", "choices, other", "facts said"]
    return table([*header, "loss of what is said", "repeated", "gibberish"], rows)


def by_topic() -> str:
    """The strength of each edit and what it does, by topic."""
    rows = []
    for topic in topics():
        for edit in EDITS:
            found = cell(edit, topic)
            strength = f"{found['strength']:g}{'' if found['within'] else ' (over the budget)'}"
            changes = [number(found[part]["change"]["value"], 2, sign=True) for part in ("test", "other_test")]
            rows.append([topic.replace("_", " "), edit, strength, *changes, str(found["test"]["change"]["n"])])
    return table(["topic", "edit", "strength", "topic, nats", "other, nats", "n"], rows, left=2)


def said(number_of: int) -> str:
    """Continuations of the first prompts of the demo's topic."""
    rows = []
    for place in range(number_of):
        prompt = cell("clamp")["said"]["shown"][place][0]
        rows.append(f"“… {_last(prompt, 8)}”\n")
        for edit in (BARE, *EDITS):
            text = next(text for asked, text in cell(edit)["said"]["shown"] if asked == prompt)
            rows.append(f"- *{edit}*: {_last(text, 24, first=True)}")
        rows.append("")
    return "\n".join(rows).strip()


def _last(text: str, words: int, first: bool = False) -> str:
    """Return the last words of a text, or the first ones, on one line without marks of Markdown."""
    found = text.split()
    some = found[:words] if first else found[-words:]
    return " ".join(some).translate(str.maketrans({mark: f"\\{mark}" for mark in "*_`<[|"}))
