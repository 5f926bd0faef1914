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
