"""Tables and transcripts of the way from texts to a judged guardrail."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from .markdown_text import interval, number, percent, table
from .results import RESULTS, read_json


RUNS = {"smollm2": "any_model_smollm2.json", "demo": "any_model_demo.json"}
LABELS = {
    "train-sae": "train an SAE",
    "scout": "measure the layers",
    "fit": "fit",
    "check": "check",
    "check near": "check on near subjects",
    "tune": "show the trade-off",
    "evaluate": "measure what is forgotten",
}
ESSENTIAL = ("train-sae", "fit", "check")
WIDTH = 96


def run(name: str) -> dict[str, Any]:
    """The results of one run, `smollm2` or `demo`."""
    found: dict[str, Any] = read_json(RUNS[name])
    return found


def has(name: str) -> bool:
    """Whether this run was made."""
    return (RESULTS / RUNS[name]).is_file()


def minutes(name: str, *commands: str) -> str:
    """Minutes of these commands together; of all without any."""
    done = run(name)["commands"]
    return number(sum(done[each]["seconds"] for each in commands or done) / 60, 0)


def essential_minutes() -> str:
    """Minutes of the three commands that lead to a checked guardrail."""
    return minutes("smollm2", *ESSENTIAL)


def times(name: str) -> str:
    """Seconds of each command."""
    done = run(name)["commands"]
    rows = [[LABELS[each], f"`sae-unlearn {each.split()[0]}`", f"{found['seconds']:,}"] for each, found in done.items()]
    return table(["step", "command", "seconds"], rows, left=2)


def rate(name: str, role: str, what: str = "fire_rate") -> str:
    """The share of held-out rows on which the gate fires, with its interval."""
    found = run(name)["calibration"][f"{what}_{role}"]
    return f"{percent(found['rate'])} ({interval(100 * found['low'], 100 * found['high'], 0)} %, n {found['n']})"


def checked(name: str, command: str, question: str) -> str:
    """The share of rows on which the gate fires by `check`, with interval and n; the question is `fires` or `quiet`."""
    rate, low, high, n = check_cells(name, command, question)
    return f"{rate} % ({low} to {high} %, n {n})"


def check_cells(name: str, command: str, question: str) -> tuple[str, str, str, str]:
    """The share of rows in percent, its bounds, and n, as `check` printed them."""
    output = run(name)["commands"][command]["output"]
    found = re.search(rf"^\w+ +{question}: The gate fires on (\d+)% \((\d+)% to (\d+)%\) of (\d+) rows", output, re.M)
    if found is None:
        raise ValueError(f"{RUNS[name]}: {command} does not say on how many rows the gate fires")
    return found[1], found[2], found[3], found[4]


def perplexity(name: str, role: str) -> str:
    """The perplexity of a side's texts before and after, with intervals, as `evaluate` printed it."""
    output = run(name)["commands"]["evaluate"]["output"]
    cells = re.search(rf"^\| {role} \|[^|]+\| perplexity \|([^|]+)\|([^|]+)\|[^|]+\| *(\d+) \|", output, re.M)
    if cells is None:
        raise ValueError(f"{RUNS[name]}: evaluate does not say the perplexity of {role}")
    return f"from {cells[1].strip()} to {cells[2].strip()}, n {cells[3]}"


def value(name: str, key: str, digits: int = 3) -> str:
    """A number of the calibration."""
    return number(run(name)["calibration"][key], digits)


def texts(name: str, key: str) -> str:
    """Number of texts of a file."""
    return f"{run(name)['texts'][key]:,}"


def transcript(name: str, *commands: str) -> str:
    """The commands with what they printed, wrapped; those that were not run are left out."""
    lines = []
    for each in commands:
        if each not in run(name)["commands"]:
            continue
        found = run(name)["commands"][each]
        for line in [f"$ {found['command']}", *found["output"].strip().splitlines(), ""]:
            line = re.sub(r"\s+$", "", line)
            indent = re.match(r" *", line)
            lines += textwrap.wrap(line, WIDTH, subsequent_indent=(indent[0] if indent else "") + "    ") or [""]
    return "```console\n" + "\n".join(lines).strip() + "\n```" if lines else ""


def saes() -> str:
    """The trained SAE's measures beside those of the demo's, and of a larger one of the same model."""
    mine, demo, larger = run("smollm2")["sae"], _demo(), read_json("smollm2_sae.json")
    rows = []
    for label, found, held in (
        ("this run", mine, mine["held_out"]),
        ("[a second model](second-model.md)", larger, larger["held_out"]["all"]),
        ("the demo", demo, demo["held_out"]["all"]),
    ):
        silent = held.get("silent_features", held.get("features_that_never_fire"))
        rows.append(
            [
                label,
                f"{found.get('d_sae', 4096):,}",
                f"{found['training']['tokens']:,}",
                number(held["explained_variance"], 2),
                number(held["explained_variance_standardized"], 2),
                number(held["l0"], 1),
                f"{silent:,} on {held['tokens']:,} tokens",
                number(held["loss_recovered"], 2),
            ]
        )
    head = ["SAE of", "features", "tokens", "explained variance", "standardized", "L0", "silent", "loss recovered"]
    return table(head, rows)


def more_tokens() -> str:
    """How many times as many tokens the demo's SAE was trained on."""
    return number(_demo()["training"]["tokens"] / run("smollm2")["sae"]["training"]["tokens"], 0)


def _demo() -> dict[str, Any]:
    folder = Path(__file__).parents[2] / "sae_unlearn" / "demo" / "gemma-3-270m-sae-l9"
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found
