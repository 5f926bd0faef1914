"""The index tables: one row for each page, with its main figure."""

from . import (
    alignment,
    alignment_claims,
    alignment_pooled,
    any_model,
    attacks,
    batching,
    forget,
    gates,
    models,
    serving,
    serving_speed,
    speed,
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
    fresh = forget.row("high_school_chemistry", "GradDiff", "fresh_baselines.txt")
    fresh_base = forget.row("high_school_chemistry", "base", "fresh_baselines.txt")
    efficiency = forget.claim("data efficiency")["figure"].split(", ")[1]
    left = forget.claim("resistance to relearning")["figure"].split(" ")[1]
    more = f"forgets more than {forget.best_gradient()} at the same damage"
    n = pooled["n"]
    total = len(forget.all_claims())
    return [
        _row("demo", "the demo forgets its topic", *_demo(FACT), "sae-unlearn demo"),
        _row("same-damage", more, *_cell(pooled["topic"]), n, baselines),
        _row(
            "same-damage-topics",
            "the same on each topic: astronomy",
            *_cell(astronomy["topic"]),
            _n(astronomy["fires"]),
            baselines,
        ),
        _row(
            "fourth-topic",
            "**does not hold** on a fourth topic; GradDiff there",
            *_cell(fresh["topic"]),
            _n(fresh_base["right, topic"]),
            baselines,
        ),
        _row("trade-off", "forgetting against damage, curves", "picture", "", "", claims),
        _row("paper-claims", "claims of the paper that hold", f"{forget.verdicts('holds')} of {total}", "", "", claims),
        _row("paper-claims-tables", "**does not hold**: data efficiency", efficiency, "", n, claims),
        _row("relearning", "share of forgetting left after relearning", left, "", n, claims),
    ]


def _serving() -> list[list[str]]:
    claim = "answers inside vLLM equal to generate()"
    batched = "answers of generate_batch equal to generate()"
    failing = "parts without which vLLM does not serve"
    return [
        _row("serving", claim, serving.equal_share(), "", str(serving.prompts()), "serving.equality"),
        _row("serving-fails-closed", failing, str(serving.failing_parts()), "", "", "serving.fails_closed"),
        _row("serving-transcript", "a server, word for word", "transcript", "", "", "serving.transcript"),
        _row("batching", batched, batching.equal_share(), "", str(batching.prompts()), "serving.batching"),
    ]


def _gate() -> list[list[str]]:
    topics = gates.means()
    on_nine = f"{gates.chosen('topics with +2 and < 0.1').split(' of ')[1]} topics"
    diluted, stretches = gates.estimate_of("weighed, 40, ratio", 64), gates.wrapped_estimate(*STRETCHES)
    halves = gates.CONFORMAL.split(", ")[1]
    return [
        _row(
            "dilution", "default gate fires, 64 words around", *_share(diluted), gates.dilution_n(), "gates.statistics"
        ),
        _row(
            "threshold",
            "halves in which the threshold is exceeded",
            gates.conformal_range("halves above"),
            "",
            halves,
            "gates.statistics",
        ),
        _row(
            "default-settings",
            "chosen setting, nats on the topic",
            gates.chosen("topic"),
            "",
            on_nine,
            "gates.gate_and_dose",
        ),
        _row(
            "new-topics",
            "new topics that reach both aims",
            f"**{topics['both']} of {topics['n']}**",
            "",
            f"{topics['n']} topics",
            "gates.default_preset",
        ),
        _row(
            "other-gates",
            "stretches fire, 64 words before",
            *_share(stretches),
            gates.wrapped_n(STRETCHES[1]),
            "gates.demo_gates",
        ),
        _row(
            "windowed-gate",
            "windowed gate fires, 256 words before; default gate",
            "; ".join(number(windowed.caught(gate, "behind 256")) for gate in ("windowed", "today")),
            "",
            f"{len(windowed.topics())} topics",
            "gates.windowed_gate",
        ),
        _row(
            "windowed-gate-alarms",
            "**false alarms** of the windowed gate at 1,024 words",
            number(windowed.alarms("windowed", "filler 1024")),
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
        _row("other-gates-answers", "recall with stretches, best of all tries", *_percent(best), n, script),
        _row("attacks", "recall plainly asked", *_recall("none"), script),
        _row("attacks-on-text", "**recall, 64 words before**", *_recall("dilution", "before, 64 words"), script),
        _row("attacks-on-weights", "**recall, adapter removed**", *_recall("removal", "adapters off"), script),
        _row("false-alarms", "fires on harmless psychology", *_percent(near), n, script),
    ]


def _second_model() -> list[list[str]]:
    file, asked = "smollm2_baselines.txt", "fitted in the template, asked in it"
    recall, rate = models.smollm2_cell(FACT), models.chat_rate(asked, "forget")
    methods = forget.row("nutrition", forget.DEFAULT, file)
    n = models.smollm2_cell(FACT, "n")
    found = any_model.run("smollm2")["calibration"]["fire_rate_forget"]
    percent = f"{100 * found['rate']:.0f} %"
    bounds = f"{100 * found['low']:.0f} to {100 * found['high']:.0f} %"
    own = "fires on a topic with an SAE trained in minutes"
    fires, low, high, asked_n = any_model.check_cells("demo", "check", "fires")
    new = "fires on a topic that nothing was tuned on"
    return [
        _row("any-model", own, percent, bounds, str(found["n"]), "any_model.run"),
        _row("any-topic", new, f"{fires} %", f"{low} to {high} %", asked_n, "any_model.run"),
        _row("second-model", "recall of the topic on SmolLM2", *_cell(recall), n, "forget.demo_on_model"),
        _row("chat-template", "fires in the template if fitted in it", *_percent(rate), n, "forget.demo_on_model"),
        _row(
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
        _row("entities", "alignment: right country still picked", *_cell(picked), alignment.seeds_of(), script),
        _row("entities-leaks", "**leaks**: capital asked without the name", *_cell(leak), alignment.seeds_of(), script),
        _row(
            "entities-pooled",
            "the same in closed form",
            *_cell(alignment_pooled.cell("closed_form", "targets unseen")),
            alignment_pooled.targets("closed_form"),
            "alignment.pooled",
        ),
        _row(
            "entities-claims",
            "claims of the alignment's abstract that hold",
            f"{alignment_claims.count(alignment_claims.HOLDS)} of {len(alignment_claims.claims())}",
            "",
            alignment_pooled.targets("closed_form"),
            "alignment.pooled",
        ),
        _row("entities-synthetic", "recall in a synthetic world", *_synthetic(), f"{seeds} seeds", "synthetic.compare"),
    ]


def speed_table() -> str:
    """The pages of `docs/speed`."""
    sae = speed.cell(speed.THIN, "step", 1)["sae 16k over fires"]
    width = speed.growth_value("width of the SAE, decoding", 131072)
    training = speed.training_ratio()
    rows = [
        _row("decoding", "added ms a decoded token, whole model", *_arm(speed.WHOLE, "step"), "speed.inference"),
        _row("one-layer", "added ms on one layer", *_arm(speed.THIN, "step"), "speed.inference"),
        _row(
            "whole-sae",
            "times less than an SAE of 16k (aim 20, **missed**)",
            number(sae["times_less"], 1),
            interval(sae["low"], sae["high"], 1),
            str(speed.rounds(speed.THIN, "step", 1)),
            "speed.inference",
        ),
        _row("prompts", "added ms to a prompt of 128 tokens", *_arm(speed.WHOLE, "prefill"), "speed.inference"),
        _row("compiled", "added ms in compiled code", *_arm(speed.COMPILED, "compiled"), "speed.inference"),
        _row("serving", "share of a pass of vLLM", serving_speed.inside("demo"), "", "", "serving.speed"),
        _row(
            "batching",
            "added to a step of generate_batch",
            serving_speed.cost("demo", "firing"),
            "",
            "",
            "serving.throughput",
        ),
        _row("growth", "added ms with an SAE of width 131,072", number(width), "", "", "speed.growth"),
        _row(
            "kernels",
            "kernels added on a CPU where it fires",
            str(speed.arm(speed.WHOLE, "step", 1, "fires")["added_kernels"]),
            "",
            "",
            "pytest tests/guardrail/kernels/test_operator_counts.py",
        ),
        _row("fitting", "MB added by ten times the corpus", speed.memory_growth(), "", "1 run", "speed.fitting_memory"),
        _row(
            "training",
            "step over a plain LoRA step",
            number(training[0]),
            interval(*training[1:]),
            "4",
            "speed.training",
        ),
        _row(
            "cold-start",
            "seconds of the import (aim 0.3, **missed**)",
            number(speed.cold_value("after torch, transformers"), 1),
            *_cold(),
            "speed.cold_start",
        ),
    ]
    return table(HEADER, rows, left=2, last_left=2)


def _row(page: str, claim: str, figure: str, interval_: str, n: str, command: str) -> list[str]:
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


def _arm(file: str, phase: str) -> tuple[str, str, str]:
    a = speed.arm(file, phase, 1, "fires")
    return number(a["added_ms"]), interval(a["added_ms_low"], a["added_ms_high"]), str(a["rounds"])


def _cold() -> tuple[str, str]:
    f = read_json("cold_start.json")["cells"]["cold start"]["after torch, transformers"]
    return interval(f["low"], f["high"], 1), str(f["runs"])
