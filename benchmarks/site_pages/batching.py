"""Tables of the guardrail in transformers' continuous batching."""

from typing import Any

from .markdown_text import table
from .results import read_json


def _scenarios() -> dict[str, Any]:
    found: dict[str, Any] = read_json("batching_equality.json")["scenarios"]
    return found


def _runs() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(scenario, run) for scenario in _scenarios().values() for run in scenario["runs"]]


def length() -> int:
    """Tokens that were generated for each prompt."""
    return int(read_json("batching_equality.json")["tokens_of_each"])


def prompts() -> int:
    """Prompts of each run."""
    return int(_runs()[0][1]["prompts"])


def version() -> str:
    """Version of transformers."""
    return str(_runs()[0][0]["transformers"])


def equality() -> str:
    """One line for each run: what happened in it, and how many prompts have the tokens and records of `generate()`."""
    rows = []
    names = {"pieces": "pieces", "resumed": "computed again", "forks": "forks"}
    for scenario, run in _runs():
        guarded, of = scenario["adapter"] != "none", run["prompts"]
        said = [f"{scenario['passes'][key]} {name}" for key, name in names.items() if scenario["passes"].get(key)]
        records = f"{run['records']}/{of}" if guarded else ""
        fired = f"{run['fired']}, {run['changed']}" if guarded else ""
        rows.append([scenario["what"], ", ".join(said), f"{run['tokens']}/{of}", records, fired])
    return table(["run", "happened", "tokens equal", "records equal", "fired, changed"], rows)


def all_equal() -> bool:
    """Whether all runs have the tokens of `generate()`, and its records."""
    return all(
        run["tokens"] == run["prompts"] and (scenario["adapter"] == "none" or run["records"] == run["prompts"])
        for scenario, run in _runs()
    )


def equal_share() -> str:
    """Answers of all runs with a guardrail that have the tokens of `generate()`, of how many."""
    runs = [run for scenario, run in _runs() if scenario["adapter"] != "none"]
    return f"{sum(run['tokens'] for run in runs)} of {sum(run['prompts'] for run in runs)}"


def _cells() -> dict[str, Any]:
    found: dict[str, Any] = read_json("batching_speed.json")["cells"]
    return found


def speed() -> str:
    """One line for each cell: time of a step and of the guardrail in it, idle and firing."""
    rows = []
    for name, cell in _cells().items():
        what = f"{cell['rows']} rows" if name.startswith("decode") else f"{cell['rows']} prompts"
        times = [f"{cell[arm]['guardrail_ms']:.2f}" for arm in ("idle", "firing")]
        ratios = [_ratio(cell[arm]) for arm in ("idle", "firing")]
        rows.append([what, f"{cell['idle']['step_ms']:.0f}", *times, *ratios, str(cell["steps"])])
    return table(["", "ms a step", "ms idle", "ms firing", "ratio idle", "ratio firing", "steps"], rows)


def _ratio(found: dict[str, float]) -> str:
    return f"{found['ratio']:.4f} ({found['ratio_low']:.4f} to {found['ratio_high']:.4f})"


def cost(arm: str) -> str:
    """Range over the decoding cells of what an arm adds, in percent."""
    added = [100 * (cell[arm]["ratio"] - 1) for name, cell in _cells().items() if name.startswith("decode")]
    return f"{min(added):.1f} to {max(added):.1f} %"
