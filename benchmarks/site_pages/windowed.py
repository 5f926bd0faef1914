"""Tables of the windowed gate beside other gates on the eight new topics."""

from statistics import mean
from typing import Any

from .markdown_text import number, percent, table
from .results import read_json


RESULT, LENGTHS = "windowed_gate.json", "windowed_lengths.json"
BEFORE, HELD = "320", "1280"
GATES = ("windowed", "probe", "today", "published", "TF-IDF", "TF-IDF, pieces", "embedding", "embedding, pieces")
WORDS = (16, 64, 256, 1024)
DIFFUSE = ("high_school_geography", "human_aging", "literature", "sport")
LOW, HIGH = 1, 2


def topics() -> list[str]:
    """The topics that had no part in any choice."""
    return [topic for topic in read_json(RESULT)["topics"] if topic != "demo"]


def draws(gate: str = "windowed") -> str:
    """The number of draws of each topic that a gate was fitted on: "8", or "5 to 8"."""
    found = [of(gate, topic)["draws"] for topic in topics()]
    return f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"


def label(gate: str) -> str:
    """The name of a gate on a page. "today", in the results, is the gate of the statistic `ratio`."""
    return "`ratio`" if gate == "today" else gate


def of(gate: str, topic: str) -> dict[str, Any]:
    """All figures of a gate on a topic."""
    return read_json(RESULT)["topics"][topic][gate]


def gates() -> list[str]:
    """The gates that were measured on every topic."""
    return [gate for gate in GATES if all(gate in read_json(RESULT)["topics"][topic] for topic in topics())]


def ranked(gate: str, kind: str, key: str, some: list[str] | None = None) -> float:
    """The mean over topics of a figure of `rows` or `short`."""
    return mean(of(gate, topic)[kind][key][0] for topic in some or topics())


def share(gate: str, condition: str, side: int, some: list[str] | None = None) -> float | None:
    """The mean over topics of the share of the topic's texts (0) or of others (1) on which a gate fires."""
    found = [of(gate, topic)["fires"].get(condition, [None, None])[side] for topic in some or topics()]
    return None if None in found else mean(one["share"][0] for one in found)


def caught(gate: str, condition: str, some: list[str] | None = None) -> float:
    """The share of the topic's texts on which a gate fires, at its threshold."""
    found = share(gate, condition, 0, some)
    assert found is not None, (gate, condition)
    return found


def alarms(gate: str, condition: str) -> float:
    """The share of other texts on which a gate fires, at its threshold."""
    found = share(gate, condition, 1)
    assert found is not None, (gate, condition)
    return found


def focused() -> list[str]:
    """The topics that are not diffuse."""
    return [topic for topic in topics() if topic not in DIFFUSE]


def fact(gate: str, condition: str, side: int = 0) -> float:
    """The share of the demo's questions on which a gate fires, or of questions about other things."""
    return read_json(RESULT)["topics"]["demo"][gate]["fires"][condition][side]["share"][0]


def ranking() -> str:
    """How well each gate tells the topic from other text, whatever the threshold; means over the topics."""
    header = [
        "gate",
        *(f"{kind}: {name}" for kind in ("rows", "short") for name in ("AUROC", "log-AUROC", "1 %", "0.1 %")),
    ]
    keys = ("auroc", "log_auroc", "at_1", "at_01")
    rows = [
        [label(gate), *(number(ranked(gate, kind, key)) for kind in ("rows", "short") for key in keys)]
        for gate in gates()
    ]
    return table(header, rows)


def by_topic(kind: str = "rows", key: str = "at_1") -> str:
    """A figure of each gate by topic, with the smallest and the largest over the draws for the windowed gate."""
    rows = []
    for topic in topics():
        mean_, low, high = of("windowed", topic)[kind][key]
        shown = f"{number(mean_)} ({number(low)} to {number(high)})"
        others = [number(of(gate, topic)[kind][key][0]) for gate in gates() if gate != "windowed"]
        rows.append([_name(topic), shown, *others])
    return table(["topic", "windowed", *(label(gate) for gate in gates() if gate != "windowed")], rows)


def diluted() -> str:
    """The share of the topic's texts caught at the threshold as fitted, by words before and after them."""
    columns = ["rows", "short", "alone", *(f"behind {w}" for w in WORDS), *(f"before {w}" for w in WORDS[1:])]
    return table(["gate", *columns], [[label(gate), *(_shown(share(gate, c, 0)) for c in columns)] for gate in gates()])


def false_alarms() -> str:
    """The share of other texts on which each gate fires at the threshold as fitted."""
    columns = ["rows", "short", *(f"behind {w}" for w in WORDS), "filler 1024", "near neighbors", "XSTest, safe"]
    return table(["gate", *columns], [[label(gate), *(_shown(share(gate, c, 1)) for c in columns)] for gate in gates()])


def facts() -> str:
    """The demo's questions: the share caught, and of questions about other things, by words before them."""
    columns = ["alone", *(f"behind {w}" for w in WORDS)]
    found = read_json(RESULT)["topics"]["demo"]
    rows = []
    for gate in (gate for gate in GATES if gate in found):
        cells = [[found[gate]["fires"][c][side]["share"][0] for side in (0, 1)] for c in columns]
        rows.append([label(gate), *(f"{number(mine)} / {number(their)}" for mine, their in cells)])
    return table(["gate: caught / false alarms", *columns], rows)


def forms() -> str:
    """The share caught in the wrappers and rephrasings of the audit."""
    plain = ("rows", "short", "alone", "near neighbors", "XSTest, safe")
    names = [
        n
        for n in of("windowed", topics()[0])["fires"]
        if n not in plain and n.split(" ")[0] not in ("behind", "before", "filler")
    ]
    columns = [gate for gate in gates() if share(gate, names[0], 0) is not None] if names else []
    return table(
        ["form", *map(label, columns)], [[name, *(_shown(share(gate, name, 0)) for gate in columns)] for name in names]
    )


def seconds(gate: str) -> float:
    """The mean time of a fit on encoded rows."""
    return mean(of(gate, topic)["fit_s"][0] for topic in topics())


def spread(gate: str, condition: str, side: int = 0) -> float:
    """The mean over topics of how far the draws lie apart: the largest share less the smallest."""
    found = [of(gate, topic)["fires"][condition][side]["share"] for topic in topics()]
    return mean(one[HIGH] - one[LOW] for one in found)


def aims() -> str:
    """The aims of the plan, and what was reached."""
    rows = [
        [
            "rows caught at 1 % false alarms",
            "at least 0.75",
            number(ranked("windowed", "rows", "at_1")),
            number(ranked("probe", "rows", "at_1")),
        ],
        [
            "short text caught at 1 %",
            "at least 0.80",
            number(ranked("windowed", "short", "at_1")),
            number(ranked("probe", "short", "at_1")),
        ],
        [
            "false alarms on short text",
            "at most 0.02",
            number(alarms("windowed", "short"), 3),
            number(alarms("probe", "short"), 3),
        ],
        [
            "false alarms behind 256 words",
            "at most 0.02",
            number(alarms("windowed", "behind 256"), 3),
            number(alarms("probe", "behind 256"), 3),
        ],
        [
            "demo's questions behind 64 words caught",
            "at least 0.85",
            number(fact("windowed", "behind 64")),
            number(fact("probe", "behind 64")),
        ],
        [
            "demo's questions behind 256 words caught",
            "at least 0.85",
            number(fact("windowed", "behind 256")),
            number(fact("probe", "behind 256")),
        ],
    ]
    return table(["aim of the plan", "asked", "windowed", "probe"], rows)


def held(topic: str = "new topics") -> str:
    """Caught and false alarms by length, with the threshold before and the one that is held to a length by the tail."""
    columns = ["rows", "short", *(f"behind {w}" for w in WORDS), "filler 1024"]
    rows = []
    for longest in (BEFORE, HELD):
        cells = [[_shown(both[0]), _shown(both[1])] for both in (lengths(longest, c, topic) for c in columns)]
        rows.append([f"{int(longest):,} tokens", *(" / ".join(cell) for cell in cells)])
    return table(["held to: caught / false alarms", *columns], rows)


def lengths(longest: str, condition: str, topic: str = "new topics") -> list[float]:
    """The share of the topic's texts and of others that fire, with alarms held to a length."""
    return read_json(LENGTHS)[topic][longest][condition]


def held_draws() -> int:
    """The draws of each topic that were measured with both thresholds."""
    return min(read_json(LENGTHS)["draws"].values())


def joined() -> str:
    """The windowed gate with thresholds of rows joined to longer texts, which was tried before."""
    columns = ["rows", "short", "behind 64", "behind 256", "behind 1024"]
    rows = []
    for longest, found in read_json(RESULT)["by_lengths"].items():
        cells = [f"{_shown(found[c][0])} / {_shown(found[c][1])}" for c in columns]
        rows.append([f"{int(longest):,} tokens", *cells])
    return table(["joined to: caught / false alarms", *columns], rows)


def fillers() -> int:
    """The number of fillers."""
    return of("windowed", topics()[0])["fires"]["filler 1024"][1]["n"]


def _shown(value: float | None) -> str:
    return "–" if value is None else number(value)


def _name(topic: str) -> str:
    return topic.replace("_", " ") + ("\\*" if topic in DIFFUSE else "")


def missed(condition: str, topic: str = "new topics") -> str:
    """The share of the topic's texts on which the gate as it is fitted now does not fire."""
    return percent(1 - lengths(HELD, condition, topic)[0])


def near() -> str:
    """The share of texts near a topic on which the gate as it is fitted now fires."""
    return percent(lengths(HELD, "near neighbors")[1])
