"""The index table of `docs/speed`: one row for each page, with its main figure."""

from . import peers, serving_speed, speed
from .index import HEADER, row
from .markdown_text import interval, number, table
from .results import read_json


def speed_table() -> str:
    """The pages of `docs/speed`."""
    sae = speed.cell(speed.THIN, "step", 1)["sae 16k over fires"]
    width = speed.growth_value("width of the SAE, decoding", 131072)
    training = speed.training_ratio()
    rows = [
        row("decoding", "added ms a decoded token, whole model", *_arm(speed.WHOLE, "step"), "speed.inference"),
        row("one-layer", "added ms on one layer", *_arm(speed.THIN, "step"), "speed.inference"),
        row(
            "whole-sae",
            "times less than an SAE of 16k (aim 20, **missed**)",
            number(sae["times_less"], 1),
            interval(sae["low"], sae["high"], 1),
            str(speed.rounds(speed.THIN, "step", 1)),
            "speed.inference",
        ),
        row("peers", "time of a token over that with DSG's own hook", *_peer("authors' hook"), "speed.peers"),
        row("prompts", "added ms to a prompt of 128 tokens", *_arm(speed.WHOLE, "prefill"), "speed.inference"),
        row("compiled", "added ms in compiled code", *_arm(speed.COMPILED, "compiled"), "speed.inference"),
        row("serving", "share of a pass of vLLM", serving_speed.inside("demo"), "", "", "serving.speed"),
        row(
            "batching",
            "added to a step of generate_batch",
            serving_speed.cost("demo", "firing"),
            "",
            "",
            "serving.throughput",
        ),
        row("growth", "added ms with an SAE of width 131,072", number(width), "", "", "speed.growth"),
        row(
            "kernels",
            "kernels added on a CPU where it fires",
            str(speed.arm(speed.WHOLE, "step", 1, "fires")["added_kernels"]),
            "",
            "",
            "pytest tests/guardrail/kernels/test_operator_counts.py",
        ),
        row("fitting", "MB added by ten times the corpus", speed.memory_growth(), "", "1 run", "speed.fitting_memory"),
        row(
            "training",
            "step over a plain LoRA step",
            number(training[0]),
            interval(*training[1:]),
            "4",
            "speed.training",
        ),
        row(
            "cold-start",
            "seconds of the import (aim 0.3, **missed**)",
            number(speed.cold_value("after torch, transformers"), 1),
            *_cold(),
            "speed.cold_start",
        ),
    ]
    return table(HEADER, rows, left=2, last_left=2)


def _arm(file: str, phase: str) -> tuple[str, str, str]:
    a = speed.arm(file, phase, 1, "fires")
    return number(a["added_ms"]), interval(a["added_ms_low"], a["added_ms_high"]), str(a["rounds"])


def _peer(name: str) -> tuple[str, str, str]:
    a = peers.arm(peers.WHOLE, "step, batch 1", name)["ours"]
    return number(a["ratio"]), interval(a["ratio_low"], a["ratio_high"]), str(a["rounds"])


def _cold() -> tuple[str, str]:
    f = read_json("cold_start.json")["cells"]["cold start"]["after torch, transformers"]
    return interval(f["low"], f["high"], 1), str(f["runs"])
