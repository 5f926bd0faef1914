"""Tables of the gate: statistics under dilution, thresholds, defaults, and the default settings on new topics."""

from statistics import mean
from typing import Any

from .markdown_text import figure, number, table
from .results import Estimate, estimate, one, read_json, text_tables


OF_RATIO = """Measured with `statistic="ratio"`, the default before [`windowed`](../methods/windowed-gate.md)."""
"""A paragraph of pages whose figures are not of the default gate."""

STATISTICS, CHOICE, WRAPPED = "gate_statistics.txt", "gate_and_dose.txt", "demo_gates.txt"
AT_97 = "Thresholds at the 97.5th percentile of other texts of all lengths; 3 topics."
CONFORMAL = "Split-conformal thresholds, 500 halves"
WORDS = ("0", "64", "256")
CHOSEN = {"gate": "weighed, 40", "threshold": "97.5th percentile, margin 0.25", "dose": "0.5"}
BEFORE = {"gate": "counted", "threshold": "97.5th percentile, margin 0.5", "dose": "0.5"}
WRAPPED_GATES = (
    "counted, margin 0.5",
    "default, margin 0",
    "default, margin 0.25",
    "stretches, margin 0",
    "stretches, margin 0.25",
)
REPORTS = {
    "second": "default_preset_report_second.json",
    "weighed": "default_preset_report_second_weighed.json",
    "counted": "default_preset_report_second_counted.json",
    "fresh": "default_preset_report_fresh.json",
    "paragraphs": "default_preset_report_paragraphs.json",
    "questions": "default_preset_report.json",
}
TOPICS = {
    "american_states": "American states",
    "engraving": "music engraving",
    "geography": "geography (GIS)",
    "postgresql": "PostgreSQL",
    "r": "R",
}
AIM_FORGET, AIM_KEEP = 2.0, 0.1


def dilution(prefix: str = "") -> str:
    """Share of rows on which each statistic fires, by words around the topic's text."""
    found = text_tables(STATISTICS)[AT_97]
    columns = ["fires on other", *(f"topic, {n} words around" for n in WORDS)]
    header = ["statistic", "other text", *(f"topic, {n} words around" for n in WORDS)]
    rows = [[r["statistic"], *(_bare(r[c]) for c in columns)] for r in found if r["statistic"].startswith(prefix)]
    return table(header, rows)


def fires(statistic: str, words: int) -> float:
    """Return the share of the topic's texts on which a statistic fires."""
    return estimate_of(statistic, words)[0]


def estimate_of(statistic: str, words: int) -> Estimate:
    """Return that share with its interval."""
    r = one(text_tables(STATISTICS)[AT_97], "statistic", statistic)
    return estimate(r[f"topic, {words} words around"])


def dilution_n() -> str:
    """Return the number of the topic's texts."""
    return (
        one(text_tables(STATISTICS)[AT_97], "statistic", "ratio")["topic, 64 words around"].split("n=")[1].rstrip(")")
    )


def conformal() -> str:
    """Stated and measured rates of the split-conformal threshold."""
    found = text_tables(STATISTICS)[CONFORMAL]
    kept = [r for r in found if not r["statistic"].startswith("weighed, 40")]
    return table(
        ["statistic", "stated", "measured", "halves above"],
        [[r["statistic"], r["stated"], r["measured"], r["halves above"]] for r in kept],
    )


def conformal_range(column: str) -> str:
    """Smallest and largest value of a column, over all statistics."""
    found = [float(r[column]) for r in text_tables(STATISTICS)[CONFORMAL]]
    return f"{number(min(found))} to {number(max(found))}"


def conformal_holds() -> bool:
    """Whether no mean rate is above the stated one."""
    return all(float(r["measured"]) <= float(r["stated"]) for r in text_tables(STATISTICS)[CONFORMAL])


def choice(dose: str = "0.5", percentile: str = "97.5th") -> str:
    """Gates and margins that were compared, at one dose and percentile."""
    found = [r for r in _choices() if r["dose"] == dose and r["threshold"].startswith(percentile)]
    header = ["gate", "margin", "fires on topic", "64 words before", "other", "topic, nats", "other, nats", "both aims"]
    columns = ["fires on topic", "topic, 64 words before", "other", "topic", "other (2)"]
    aims = "topics with +2 and < 0.1"
    rows = [[r["gate"], r["threshold"].split("margin ")[1], *(r[c] for c in columns), r[aims]] for r in found]
    return table(header, rows)


def chosen(column: str, which: dict[str, str] = CHOSEN) -> str:
    """Return a cell of the chosen setting, or of another."""
    found = [r for r in _choices() if all(r[k] == v for k, v in which.items())]
    return found[0][column]


def before(column: str) -> str:
    """Return a cell of the setting that was the default before."""
    return chosen(column, BEFORE)


def compared() -> int:
    """Return how many settings were compared."""
    return len(_choices())


def wrapped(side: str = "topic") -> str:
    """Share of rows on which three gates fire, by what stands around the question."""
    found = text_tables(WRAPPED)[side]
    columns = [c for c in found[0] if c.split(" (")[0] in WRAPPED_GATES]
    header = ["text", *(c.split(" (")[0].replace(", margin", "<br>margin") for c in columns)]
    return table(header, [[r[""], *(_bare(r[c]) for c in columns)] for r in found])


def wrapped_rate(gate: str, text: str, side: str = "topic") -> float:
    """Return the share of rows on which a gate ("default, margin 0.25") fires."""
    return wrapped_estimate(gate, text, side)[0]


def wrapped_estimate(gate: str, text: str, side: str = "topic") -> Estimate:
    """Return that share with its interval."""
    r = one(text_tables(WRAPPED)[side], "", text)
    column = next(c for c in r if c.split(" (")[0] == gate)
    return estimate(r[column])


def wrapped_n(text: str, side: str = "topic") -> str:
    """Return the number of rows."""
    return one(text_tables(WRAPPED)[side], "", text)["n"]


def new_topics(name: str = "second") -> str:
    """What a fit with the default settings does on topics that had no part in choosing them."""
    rows = []
    for r in read_json(REPORTS[name]):
        forget, other = r["forget"], r["other"]
        aims = (forget["change"] >= AIM_FORGET, other["change"] < AIM_KEEP)
        rows.append([_topic(r), *_fired_and_change(forget), *_fired_and_change(other), *map(_yes, aims)])
    header = ["topic", "fires on topic", "change, nats", "fires on other", "change, nats", "forgets 2", "keeps 0.1"]
    return table(header, rows)


def means(name: str = "second") -> dict[str, float]:
    """Return the mean changes over the topics of a report, and how many reach both aims."""
    found = read_json(REPORTS[name])
    both = sum(r["forget"]["change"] >= AIM_FORGET and r["other"]["change"] < AIM_KEEP for r in found)
    return {
        "topic": mean(r["forget"]["change"] for r in found),
        "other": mean(r["other"]["change"] for r in found),
        "both": both,
        "forgets": sum(r["forget"]["change"] >= AIM_FORGET for r in found),
        "n": len(found),
    }


def all_means() -> str:
    """Mean changes of each set of defaults on topics that it had not seen."""
    labels = {
        "second": "current: windowed gate, 40 features",
        "weighed": "before: weighed tokens, 40 features",
        "counted": "before that: hot tokens counted, 20 features",
        "fresh": "99th percentile, 16 times the mean activation",
        "paragraphs": "95th percentile, 12 times the mean activation",
        "questions": "the same, on questions of MMLU",
    }
    rows = []
    for name, label in labels.items():
        m = means(name)
        topics = ", ".join(_topic(r) for r in read_json(REPORTS[name]))
        rows.append(
            [label, topics, number(m["topic"], 2, True), number(m["other"], 3, True), f"{m['both']} of {m['n']}"]
        )
    return table(["defaults", "topics", "topic, nats", "other, nats", "both aims"], rows, left=2)


def fired(topic: str, name: str = "second") -> str:
    """Return the number of the topic's rows on which the gate fires: "12 of 40"."""
    forget = next(r["forget"] for r in read_json(REPORTS[name]) if r["topic"] == topic)
    return f"{forget['fired']} of {forget['n']}"


def topic_names(name: str = "second", reaching: bool | None = None) -> str:
    """Return the topics of a report, or those that reach both aims or do not."""
    found = []
    for r in read_json(REPORTS[name]):
        both = r["forget"]["change"] >= AIM_FORGET and r["other"]["change"] < AIM_KEEP
        if reaching is None or reaching == both:
            found.append(_topic(r))
    return ", ".join(found)


def _choices() -> list[dict[str, str]]:
    return next(iter(text_tables(CHOICE).values()))


def _fired_and_change(side: dict[str, Any]) -> tuple[str, str]:
    return f"{side['fired']}/{side['n']}", figure(side["change"], *side["interval"], 2, True)


def _topic(r: dict[str, Any]) -> str:
    return TOPICS.get(r["topic"], r["topic"].replace("_", " "))


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _bare(cell: str) -> str:
    return cell.split(" (n=")[0].replace("[", "(").replace("]", ")").replace(", ", " to ")
