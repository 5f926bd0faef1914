"""Tables of the audits of the demo's guardrail."""

from .markdown_text import table
from .results import Estimate, Row, estimate, markdown_tables, one


AUDITS = {
    "default": "demo_audit/audit.md",
    "ratio": "demo_audit_ratio/audit.md",
    "counted": "demo_audit_counted/audit.md",
    "stretches": "demo_audit_weighed/audit.md",
}
CARD = "../../model_cards/forget-biology-gemma-3-270m/README.md"
MAIN, BEST, NEAR = "Audit of the demo's guardrail", "With the best of all tries", "Harmless rows near the topic"
RECALL, OTHER = "recall of forgotten facts", "recall of other facts"


def rows(audit: str = "default") -> list[Row]:
    """Return the rows of the main table of an audit."""
    return markdown_tables(AUDITS[audit])[MAIN]


def row(attack: str, variant: str = "", audit: str = "default") -> Row:
    """Return one row, by the attack and its variant ("before, 16 words").

    Raises:
        LookupError: If there is no such row, or more than one.
    """
    found = [r for r in rows(audit) if r["attack"] == attack and r[""] == variant]
    if len(found) != 1:
        raise LookupError(f"attack={attack!r}, {variant!r}: expected one row of the audit, got {len(found)}.")
    return found[0]


def recall(attack: str, variant: str = "", audit: str = "default", column: str = RECALL) -> str:
    """Return a recall, or another share, of one row: "12.5 %"."""
    return _percent(estimate(row(attack, variant, audit)[column])[0])


def share(attack: str, variant: str = "", audit: str = "default", column: str = RECALL) -> float:
    """Return the same as a number, in percent."""
    return estimate(row(attack, variant, audit)[column])[0]


def span(attack: str, audit: str = "default", start: str = "") -> str:
    """Return the smallest and largest recall over the variants of an attack that the base can answer."""
    found = [
        estimate(r[RECALL])[0] for r in rows(audit) if r["attack"] == attack and r[""].startswith(start) and _says(r)
    ]
    return f"{_percent(min(found))[:-2]} to {_percent(max(found))}"


def summary() -> str:
    """The worst form of each attack, as the card of the demo's guardrail shows it."""
    worst = [r for r in markdown_tables(CARD)[MAIN] if r["attack"] != "best of all tries"]
    cells = [
        [r["attack"], r["worst form"], *(r[c] or "–" for c in (RECALL, "base", "gate fires")), r["n"]] for r in worst
    ]
    return table(["attack", "its worst form", "recall", "base", "gate fires", "n"], cells, left=2)


def full(*attacks: str, audit: str = "default") -> str:
    """All rows of some attacks. Rows whose form the base cannot answer are marked: they show nothing."""
    cells = []
    for r in rows(audit):
        if r["attack"].removesuffix(" (control)") in attacks:
            name = f"{r['attack']}{', ' if r[''] else ''}{r['']}"
            mark = "" if _says(r) else " †"
            shown = (r[c].removesuffix(" †") or "–" for c in (RECALL, "base", "gate fires"))
            cells.append([name + mark, *shown, r["n"]])
    return table(["attack", "recall", "base", "gate fires", "n"], cells)


def other(*attacks: str, audit: str = "default") -> str:
    """Recall of facts about other things under some attacks, of the guarded and of the bare model."""
    cells = []
    for r in rows(audit):
        if r["attack"] in attacks and r[OTHER] and _says(r):
            name = f"{r['attack']}{', ' if r[''] else ''}{r['']}"
            cells.append(
                [name, *(r[c] or "–" for c in (OTHER, "base, other facts", "gate fires, other facts")), r["n"]]
            )
    return table(["attack", "recall of other facts", "base", "gate fires", "n"], cells)


def best(audit: str = "default") -> str:
    """The best of all tries of each attack."""
    cells = [[r["attack"], r["tries"], r[RECALL], r["base"], r["n"]] for r in markdown_tables(AUDITS[audit])[BEST]]
    return table(["attack", "tries", "recall", "base", "n"], cells)


def best_of(attack: str, audit: str = "default") -> str:
    """Return the recall of the best of all tries of an attack."""
    return _percent(best_estimate(attack, audit)[0])


def best_estimate(attack: str, audit: str = "default") -> Estimate:
    """Return that recall with its interval, in percent."""
    return estimate(one(markdown_tables(AUDITS[audit])[BEST], "attack", attack)[RECALL])


def gates() -> str:
    """Recall under the same attacks with three gates."""
    cells = []
    for r in rows("stretches"):
        if not _says(r):
            continue
        name = f"{r['attack']}{', ' if r[''] else ''}{r['']}"
        found = [row(r["attack"], r[""], audit)[RECALL] for audit in ("counted", "ratio", "stretches")]
        cells.append([name, *found, r["base"]])
    return table(["attack", "counted", "`ratio`", "stretches", "base"], cells)


def before_and_after(*variants: str) -> str:
    """Recall behind filler with the gate of `ratio` and with the default one, and how often each fires."""
    cells = []
    for variant in variants:
        attack = "splitting" if variant.startswith("harmless") else "dilution"
        old, new = (row(attack, variant, audit) for audit in ("ratio", "default"))
        cells.append([variant, *(r[c] for r in (old, new) for c in (RECALL, "gate fires"))])
    return table(["form", "`ratio`: recall", "fires", "default: recall", "fires"], cells)


def near() -> str:
    """What happens to harmless rows near the topic."""
    cells = [
        [r["data"].removeprefix("near: "), r["measure"], r["before"] or "–", r["after"], r["n"]]
        for r in markdown_tables(AUDITS["default"])[NEAR]
    ]
    return table(["rows", "measure", "before", "after", "n"], cells, left=2)


def near_rate(data: str, audit: str = "default") -> Estimate:
    """Return the share of harmless rows on which the gate fires, with its interval, in percent."""
    for r in markdown_tables(AUDITS[audit])[NEAR]:
        if r["data"].endswith(data) and r["measure"].startswith("gate fires"):
            return estimate(r["after"])
    raise LookupError(f"data={data!r}: expected a row of harmless texts.")


def near_fires(data: str, audit: str = "default") -> str:
    """Return the number of harmless rows on which the gate fires: "4 of 24"."""
    n = next(r["n"] for r in markdown_tables(AUDITS[audit])[NEAR] if r["data"].endswith(data))
    return f"{round(near_rate(data, audit)[0] * int(n) / 100)} of {n}"


def count(attack: str, variant: str = "", audit: str = "default", column: str = RECALL) -> str:
    """Return a share as a count: "2 of 12"."""
    r = row(attack, variant, audit)
    return _of(r[column], r["n"])


def _of(cell: str, n: str) -> str:
    return f"{round(estimate(cell)[0] * int(n) / 100)} of {n}"


def _says(r: Row) -> bool:
    """Return False for a row that the audit marks: the base itself cannot answer this form of the question."""
    return not r["base"].endswith("†")


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 1 or value == 0 else f"{value:.1f} %"
