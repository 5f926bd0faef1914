"""Tables of the demo's model, and of SmolLM2 as a second one."""

from .markdown_text import figure, number, percent, table
from .results import Estimate, Row, estimate, markdown_tables, one, read_json, text_tables


CHATS = {
    "fitted on plain text, asked in the template": "smollm2_chat_plain.md",
    "fitted in the template, asked in it": "smollm2_chat_template.md",
    "the same, with a request in the message": "smollm2_chat_request.md",
    "the same, asked as plain text": "smollm2_template_asked_plain.md",
}


def demo() -> str:
    """What the demo's guardrail forgets and keeps."""
    cells = []
    for r in read_json("demo.json")["table"]:
        values = [_of(r, name) for name in ("before", "after", "change")]
        cells.append([r["title"], *values, str(r["n"])])
    return table(["", "before", "after", "change", "n"], cells)


def demo_value(title: str, column: str = "after") -> str:
    """Return a value of that table, without its interval."""
    r = next(r for r in read_json("demo.json")["table"] if r["title"] == title)
    return percent(r[column]) if r["unit"] == "rate" else number(r[column], 3, column == "change")


def answers() -> str:
    """The same beginnings, continued before and after, as a table."""
    rows = []
    for r in read_json("demo.json")["answers"]:
        side = "topic" if r["side"] == "forget" else "other"
        rows.append([side, _escaped(r["prompt"]), _escaped(r["before"]), _escaped(r["after"])])
    return table(["", "prompt", "before", "after"], rows, left=4)


def smollm2(file: str = "smollm2_demo.txt") -> str:
    """What the demo's texts give on SmolLM2."""
    found = _demo_rows(file)
    cells = [[r[""], *(r[c] or "–" for c in ("before", "after", "change")), r["n"]] for r in found]
    return table(["", "before", "after", "change", "n"], cells)


def smollm2_value(title: str, column: str = "after", file: str = "smollm2_demo.txt") -> str:
    """Return a value of that table, without its interval."""
    return smollm2_cell(title, column, file).split(" (")[0]


def smollm2_cell(title: str, column: str = "after", file: str = "smollm2_demo.txt") -> str:
    """Return a cell of that table."""
    return one(_demo_rows(file), "", title)[column]


def sae(name: str) -> float:
    """Return a figure of the SAE of SmolLM2, on held-out text."""
    return read_json("smollm2_sae.json")["held_out"]["all"][name]


def sae_tokens() -> str:
    return f"{read_json('smollm2_sae.json')['training']['tokens']:,}"


def chats() -> str:
    """Fire rates and recall in and out of the chat template."""
    cells = []
    for label, file in CHATS.items():
        rates = [_chat(file, side, "gate fires (default)")["after"] for side in ("forget", "retain")]
        r = _chat(file, "forget", "ROUGE-L recall")
        cells.append([label, *map(_no_unit, rates), r["before"], r["after"]])
    header = ["guardrail and question", "fires on topic", "on other", "ROUGE-L before", "after"]
    return table(header, cells)


def chat_count(label: str, side: str) -> str:
    """Return on how many of the facts the gate fires: "45 of 48"."""
    r = _chat(CHATS[label], side, "gate fires (default)")
    return f"{round(estimate(r['after'])[0] * int(r['n']) / 100)} of {r['n']}"


def chat_rate(label: str, side: str) -> Estimate:
    """Return the share of the facts on which the gate fires, in percent."""
    return estimate(_chat(CHATS[label], side, "gate fires (default)")["after"])


def _chat(file: str, side: str, measure: str) -> Row:
    found = next(iter(markdown_tables(file).values()))
    return next(r for r in found if r["side"] == side and r["measure"] == measure)


def _demo_rows(file: str) -> list[Row]:
    return next(rows for title, rows in text_tables(file).items() if title.startswith("What it forgets"))


def _no_unit(cell: str) -> str:
    return cell.replace(" % to ", " to ").replace(" %)", ")")


def _of(r: dict, name: str) -> str:
    if r[name] is None:
        return "–"
    if r[f"{name}_interval"] is None:
        return number(r[name], 3)
    low, high = r[f"{name}_interval"]
    scale, digits, unit = (100, 0, " %") if r["unit"] == "rate" else (1, 3, "")
    text = figure(r[name] * scale, low * scale, high * scale, digits, name == "change")
    return text.replace(" (", f"{unit} (", 1)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").strip()
