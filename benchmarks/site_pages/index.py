"""The index table of `docs/evidence`: one row for each page, with its main figure."""

from . import (
    alignment,
    alignment_claims,
    alignment_pooled,
    alignment_sizes,
    any_model,
    attacks,
    batching,
    edits,
    forget,
    gates,
    models,
    paragraphs,
    serving,
    windowed,
)
from .markdown_text import interval, number, table
from .results import Estimate, estimate, read_json


FACT = "recall of facts of the topic"
STRETCHES = ("stretches, margin 0", "64 words before")
HEADER = ["claim", "figure", "interval", "n", "command", "page"]


def evidence_table() -> str:
    """The pages of `docs/evidence`."""
    rows = [*_forgetting(), *_gate(), *_attacks(), *_second_model(), *_serving(), *_entities()]
    return table(HEADER, rows, left=2, last_left=2)


def _forgetting() -> list[list[str]]:
    baselines, claims = "forget.compare", "claims.run"
    pooled = forget.row(forget.ALL, forget.DEFAULT)
    astronomy = forget.row("astronomy", forget.DEFAULT)
    fresh = forget.row("high_school_chemistry", forget.DEFAULT, "fresh_baselines.txt")
    fresh_base = forget.row("high_school_chemistry", "base", "fresh_baselines.txt")
    efficiency = forget.claim("data efficiency")["figure"].split(", ")[1]
    left = forget.claim("resistance to relearning")["figure"].split(" ")[1]
    more = f"forgets more than {forget.best_gradient()} at the same damage"
    n = pooled["n"]
    total = len(forget.all_claims())
    facts = str(edits.cell("clamp")["recall"]["forget"]["n"])
    return [
        row("demo", "the demo forgets its topic", *_demo(FACT), "sae-unlearn demo"),
        row("same-damage", more, *_cell(pooled["topic"]), n, baselines),
        row(
            "same-damage-topics",
            "the same on each topic: astronomy",
            *_cell(astronomy["topic"]),
            _n(astronomy["fires"]),
            baselines,
        ),
        row(
            "fourth-topic",
            "the same on a fourth topic, at the smallest dose",
            *_cell(fresh["topic"]),
            _n(fresh_base["right, topic"]),
            baselines,
        ),
        row("edits", "facts said: features at 0; default clamp", _said(), "", facts, "forget.edits"),
        row("trade-off", "forgetting against damage, curves", "picture", "", "", claims),
        row("paper-claims", "claims of the paper that hold", f"{forget.verdicts('holds')} of {total}", "", "", claims),
        row("paper-claims-tables", "**does not hold**: data efficiency", efficiency, "", n, claims),
        row("relearning", "share of forgetting left after relearning", left, "", n, claims),
    ]


def _serving() -> list[list[str]]:
    claim = "answers inside vLLM equal to generate()"
    batched = "answers of generate_batch equal to generate()"
    failing = "parts without which vLLM does not serve"
    checked = "parts which serve and check --url miss by name"
    parts, more = str(serving.failing_parts("start", "pass", "request")), str(serving.failing_parts("serve", "check"))
    return [
        row("serving", claim, serving.equal_share(), "", str(serving.prompts()), "serving.equality"),
        row("serving-fails-closed", failing, parts, "", "", "serving.fails_closed"),
        row("serving-checks", checked, more, "", "", "serving.fails_closed"),
        row("serving-transcript", "a server, word for word", "transcript", "", "", "serving.transcript"),
        row("batching", batched, batching.equal_share(), "", str(batching.prompts()), "serving.batching"),
    ]


def _gate() -> list[list[str]]:
    topics = gates.means()
    on_nine = f"{gates.chosen('topics with +2 and < 0.1').split(' of ')[1]} topics"
    diluted, stretches = gates.estimate_of("weighed, 40, ratio", 64), gates.wrapped_estimate(*STRETCHES)
    halves = gates.CONFORMAL.split(", ")[1]
    return [
        row(
            "dilution", "`ratio` gate fires, 64 words around", *_share(diluted), gates.dilution_n(), "gates.statistics"
        ),
        row(
            "threshold",
            "halves in which the threshold is exceeded",
            gates.conformal_range("halves above"),
            "",
            halves,
            "gates.statistics",
        ),
        row(
            "default-settings",
            "chosen setting, nats on the topic",
            gates.chosen("topic"),
            "",
            on_nine,
            "gates.gate_and_dose",
        ),
        row(
            "new-topics",
            "new topics that reach both aims",
            f"**{topics['both']} of {topics['n']}**",
            "",
            f"{topics['n']} topics",
            "gates.default_preset",
        ),
        row(
            "other-gates",
            "stretches fire, 64 words before",
            *_share(stretches),
            gates.wrapped_n(STRETCHES[1]),
            "gates.demo_gates",
        ),
        row(
            "windowed-gate",
            "windowed gate fires, 256 words before; `ratio` gate",
            "; ".join(number(windowed.caught(gate, "behind 256")) for gate in ("windowed", "today")),
            "",
            f"{len(windowed.topics())} topics",
            "gates.windowed_gate",
        ),
        row(
            "windowed-gate-alarms",
            "**false alarms** of the windowed gate at 1,024 words",
            number(windowed.alarms("windowed", "filler 1024")),
            "",
            f"{len(windowed.topics())} topics",
            "gates.windowed_gate",
        ),
        row(
            "paragraphs",
            "windowed gate fires behind 256 words and a blank line; with paragraphs",
            "; ".join(number(paragraphs.share(gate, "caught behind 256")) for gate in ("without", "with")),
            "",
            f"{paragraphs.topics()} topics",
            "gates.paragraph_gate",
        ),
        row(
            "windowed-gate-lengths",
            "the same, held to 1,280 tokens",
            number(windowed.lengths(windowed.HELD, "filler 1024")[1]),
            "",
            f"{len(windowed.topics())} topics",
            "gates.windowed_gate",
        ),
    ]


def _attacks() -> list[list[str]]:
    script = "forget.demo_audit"
    n = attacks.row("none")["n"]
    near = attacks.near_rate("high school psychology")
    best = attacks.best_estimate("all of these", "stretches")
    return [
        row("other-gates-answers", "recall with stretches, best of all tries", *_percent(best), n, script),
        row("attacks", "recall plainly asked", *_recall("none"), script),
        row("attacks-on-text", "**recall, 64 words before**", *_recall("dilution", "before, 64 words"), script),
        row("attacks-on-weights", "**recall, adapter removed**", *_recall("removal", "adapters off"), script),
        row("false-alarms", "fires on harmless psychology", *_percent(near), n, script),
    ]


def _second_model() -> list[list[str]]:
    file, asked = "smollm2_baselines.txt", "fitted in the template, asked in it"
    recall, rate = models.smollm2_cell(FACT), models.chat_rate(asked, "forget")
    methods = forget.row("nutrition", forget.RATIO, file)
    n = models.smollm2_cell(FACT, "n")
    found = any_model.run("smollm2")["calibration"]["fire_rate_forget"]
    percent = f"{100 * found['rate']:.0f} %"
    bounds = f"{100 * found['low']:.0f} to {100 * found['high']:.0f} %"
    own = "fires on a topic with an SAE trained in minutes"
    fires, low, high, asked_n = any_model.check_cells("demo", "check", "fires")
    new = "fires on a topic that nothing was tuned on"
    return [
        row("any-model", own, percent, bounds, str(found["n"]), "any_model.run"),
        row("any-topic", new, f"{fires} %", f"{low} to {high} %", asked_n, "any_model.run"),
        row("second-model", "recall of the topic on SmolLM2", *_cell(recall), n, "forget.demo_on_model"),
        row("chat-template", "fires in the template if fitted in it", *_percent(rate), n, "forget.demo_on_model"),
        row(
            "second-model-methods",
            "forgets more on SmolLM2",
            *_cell(methods["topic"]),
            _n(methods["fires"]),
            "forget.compare",
        ),
    ]


def _entities() -> list[list[str]]:
    script = "alignment.real"
    picked, leak = (alignment.real_cell(measure) for measure in ("targets, new form", "leak: capital"))
    seeds = len(alignment.seeds("ours"))
    return [
        row("entities", "alignment: right country still picked", *_cell(picked), alignment.seeds_of(), script),
        row("entities-leaks", "**leaks**: capital asked without the name", *_cell(leak), alignment.seeds_of(), script),
        row(
            "entities-pooled",
            "the same in closed form",
            *_cell(alignment_pooled.cell("closed_form", "targets unseen")),
            alignment_pooled.targets("closed_form"),
            "alignment.pooled",
        ),
        row(
            "entities-sizes",
            "**less is forgotten** of 50 cities at once",
            *_cell(alignment_sizes.cell("50", "picks the country")),
            alignment_pooled.targets("closed_form"),
            "alignment.pooled_sizes",
        ),
        row(
            "entities-claims",
            "claims of the alignment's abstract that hold",
            f"{alignment_claims.count(alignment_claims.HOLDS)} of {len(alignment_claims.claims())}",
            "",
            alignment_pooled.targets("closed_form"),
            "alignment.pooled",
        ),
        row("entities-synthetic", "recall in a synthetic world", *_synthetic(), f"{seeds} seeds", "synthetic.compare"),
    ]


def _said() -> str:
    return "; ".join(edits.recalled(edit) for edit in ("to zero", "clamp"))


def row(page: str, claim: str, figure: str, interval_: str, n: str, command: str) -> list[str]:
    """Return a row. A command without a space is a module of `benchmarks`."""
    command = command if " " in command else f"benchmarks.{command}"
    return [claim, figure, interval_ or "–", n or "–", f"`{command}`", f"[{page}]({page}.md)"]


def _n(cell: str) -> str:
    """Return the n of "0.73 (n=22)"."""
    return cell.partition("(n=")[2].rstrip(")")


def _cell(cell: str) -> tuple[str, str]:
    """Split "0.60 (0.50 to 0.70)"."""
    value, _, rest = cell.partition(" (")
    return value, rest.rstrip(")")


def _demo(title: str) -> tuple[str, str, str]:
    r = next(r for r in read_json("demo.json")["table"] if r["title"] == title)
    low, high = (100 * bound for bound in r["change_interval"])
    return f"{number(100 * r['change'], 0, True)} %", interval(low, high, 0, True), str(r["n"])


def _recall(attack: str, variant: str = "") -> tuple[str, str, str]:
    r = attacks.row(attack, variant)
    return *_percent(estimate(r[attacks.RECALL])), r["n"]


def _percent(found: Estimate) -> tuple[str, str]:
    value, low, high = found
    return f"{value:.0f} %", interval(low, high, 0)


def _share(found: Estimate) -> tuple[str, str]:
    value, low, high = found
    return number(value), interval(low, high)


def _synthetic() -> tuple[str, str]:
    return number(alignment.world("ours")), f"± {number(alignment.world('ours', 'recall', 'sd'))}"
