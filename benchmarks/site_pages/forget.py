"""Tables of the guardrail beside other methods, and of the claims of the paper's abstract."""

from .markdown_text import figure, number, table
from .results import RESULTS, Row, estimate, one, read_json, text_tables


BASELINES, CLAIMS = "guardrail_baselines.txt", "guardrail_claims.txt"
DEFAULT, RATIO = "DSG windowed", "DSG ratio"
COUNTED = "DSG counted, ratio"
GRADIENT = ("gradient ascent", "GradDiff", "NPO", "RMU")
ALL = "all topics"
NAMES = {
    "DSG windowed": "**guardrail, default**",
    "DSG ratio": "guardrail, `ratio`",
    "DSG default, window": "guardrail, window",
    "DSG default, cusum": "guardrail, CUSUM",
    "DSG counted, ratio": "guardrail, hot tokens counted",
    "DSG faithful, published dose": "faithful, published dose",
    "DSG faithful, ratio": "faithful",
    "DSG faithful, window": "faithful, window",
    "DSG faithful, cusum": "faithful, CUSUM",
}
CLAIM_NAMES = {"computational efficiency": "cost"}


def row(topic: str, method: str, file: str = BASELINES) -> Row:
    """Return a row of the comparison: of a topic, or of "all topics"."""
    return one(text_tables(file)[topic], "method", method)


def value(topic: str, method: str, column: str = "topic", file: str = BASELINES) -> float:
    """Return the value of a cell."""
    return estimate(row(topic, method, file)[column])[0]


def text(topic: str, method: str, column: str = "topic", file: str = BASELINES) -> str:
    """Return the value of a cell as it is written, without its interval."""
    return row(topic, method, file)[column].split(" (")[0]


def within(topic: str, method: str, file: str = BASELINES) -> bool:
    """Whether a strength of the method kept the budget."""
    return row(topic, method, file).get("strength") != "none within"


def best_gradient(topic: str = ALL, file: str = BASELINES) -> str:
    """Return the gradient method that forgets most within the budget."""
    return max((m for m in GRADIENT if within(topic, m, file)), key=lambda m: value(topic, m, "topic", file))


def times(topic: str = ALL, method: str = DEFAULT, file: str = BASELINES) -> str:
    """Return how many times as much a method forgets as the best gradient method."""
    ratio = value(topic, method, "topic", file) / value(topic, best_gradient(topic, file), "topic", file)
    return number(ratio, 0 if ratio >= 3 else 1)


def pooled() -> str:
    """The table over all topics."""
    header = ["method", "topics within", "topic, nats", "n", "other text, nats", "n"]
    found = text_tables(BASELINES)[ALL]
    rows = [[_name(r), r["topics"], r["topic"], r["n"], r["other"], r["n (2)"]] for r in found]
    return table(header, [[cell or "–" for cell in cells] for cells in rows])


def by_topic(topic: str, file: str = BASELINES) -> str:
    """The table of one topic."""
    header = ["method", "strength", "topic, nats", "other, nats", "fires on topic", "on other", "right, topic"]
    rows = []
    for r in text_tables(file)[topic]:
        cells = [r[c] for c in ("strength", "topic", "other", "fires", "on other", "right, topic")]
        rows.append([_name(r), *(cell.replace(" (n=", ", n=").rstrip(")") if "n=" in cell else cell for cell in cells)])
    return table(header, [[_short(cell) for cell in cells] for cells in rows])


def sizes(topic: str, file: str = BASELINES) -> str:
    """Return how many texts and questions the figures of a topic are over, as a sentence."""
    clamp = row(topic, "static clamp", file)
    texts, others, questions = (_n(clamp[c]) for c in ("fires", "on other", "right, topic"))
    return f"Texts: {texts} of the topic and {others} others; {questions} questions."


def claim(name: str, file: str = CLAIMS) -> Row:
    """Return the row of a claim."""
    return one(text_tables(file)[""], "claim", name)


def all_claims(file: str = CLAIMS) -> list[Row]:
    """Return the rows of all claims."""
    return text_tables(file)[""]


def claims(file: str = CLAIMS, all_rows: bool = True) -> str:
    """The table of claims; without those that were not measured unless `all_rows`."""
    found = [r for r in text_tables(file)[""] if all_rows or r["verdict"] != "not measured"]
    return table(["claim", "verdict", "figure"], [[r["claim"], _verdict(r), r["figure"]] for r in found], left=3)


def verdicts(word: str, file: str = CLAIMS) -> int:
    """Return how many claims have a verdict that begins with `word`."""
    return sum(r["verdict"].startswith(word) for r in text_tables(file)[""])


def rules(file: str = CLAIMS) -> str:
    """The rule of each claim, as a list."""
    lines = (RESULTS / file).read_text(encoding="utf-8").split("A claim holds if")[1].splitlines()
    pairs = [line.strip().split(": ", 1) for line in lines if line.strip()]
    return "\n".join(f"- *{name}*: {rule}" for name, rule in pairs)


def relearning(steps: str) -> str:
    """Loss on the topic's test texts before and after relearning."""
    rows = []
    for cell in _claim_cells("relearning"):
        for arm, label in (("base", "bare model"), ("guardrail", "guardrail"), ("NPO", "NPO")):
            losses = [number(cell["found"][arm][at]) for at in ("0", steps)]
            rows.append([cell["topic"].replace("_", " "), label, *losses])
    return table(["topic", "model", "before", "after"], rows, left=2)


def relearning_is_weak(steps: str) -> bool:
    """Whether the steps do not lower the bare model's loss on any topic."""
    return all(c["found"]["base"][steps] >= c["found"]["base"]["0"] for c in _claim_cells("relearning"))


def cost() -> str:
    """Time, throughput and memory of a fit and of one epoch of each gradient method, by topic."""
    rows = []
    for cell in _claim_cells("cost"):
        for arm, f in cell["found"].items():
            figures = (number(f["seconds"], 0), number(f["tokens_per_second"], 0), number(f["peak_bytes"] / 1e9, 1))
            rows.append([cell["topic"].replace("_", " "), arm, *figures])
    return table(["topic", "method", "seconds", "tokens/s", "peak memory, GB"], rows, left=2)


def settings_within() -> str:
    """Settings that forget one nat within the budget, by topic. A run that was stopped over the budget does not."""
    rows = []
    for cell in _claim_cells("stability"):
        for arm, tried in cell["found"].items():
            measured = [t for t in tried if "refused" not in t]
            good = sum(t["damage"] <= 0.1 and t["forgotten"] >= 1 for t in measured)
            damages = [t["damage"] for t in measured]
            spread = f"{number(min(damages))} to {number(max(damages))}" + ("" if measured == tried else ", or stopped")
            rows.append([cell["topic"].replace("_", " "), arm, f"{good} of {len(tried)}", spread])
    return table(["topic", "method", "settings that hold both", "damage over the settings"], rows, left=2)


def zero_shot() -> str:
    """Features chosen without text beside fitted ones, by topic."""
    rows = []
    for cell in _claim_cells("zero_shot"):
        for name, arm in cell["found"].items():
            if isinstance(arm, dict) and "test" in arm:
                c = arm["test"]["change"]
                rows.append([cell["topic"].replace("_", " "), name, figure(c["value"], c["low"], c["high"], 2, True)])
    return table(["topic", "features", "change on the topic, nats"], rows, left=2)


def data_efficiency() -> str:
    """What a share of the topic's texts forgets, by topic."""
    cells = _claim_cells("data_efficiency")
    shares = [share for share in cells[0]["found"] if share.isdigit()]
    rows = []
    for cell in cells:
        tests = [cell["found"][share].get("test", {}).get("change") for share in shares]
        shown = [figure(c["value"], c["low"], c["high"], 2, True) if c else "refused" for c in tests]
        rows.append([cell["topic"].replace("_", " "), *shown])
    return table(["topic", *(f"{share} %" for share in shares)], rows)


def _claim_cells(name: str) -> list[dict]:
    return [cell for cell in read_json("guardrail_claims.json") if cell["claim"] == name]


def _verdict(r: Row) -> str:
    return f"**{r['verdict']}**" if r["verdict"] == "holds" else r["verdict"]


def _name(r: Row) -> str:
    return NAMES.get(r["method"], r["method"])


def _n(cell: str) -> str:
    return cell.partition("(n=")[2].rstrip(")")


def _short(cell: str) -> str:
    return cell.split(", n=")[0] if ", n=" in cell else cell
