"""Tables of the guardrail inside serving engines."""

from typing import Any

from .markdown_text import table
from .results import read_json


def _scenarios() -> dict[str, Any]:
    found: dict[str, Any] = read_json("serving_equality.json")["scenarios"]
    return found


def length() -> int:
    """Tokens that were generated for each prompt."""
    return int(read_json("serving_equality.json")["tokens_of_each"])


def prompts() -> int:
    """Prompts of each run."""
    return int(next(iter(_scenarios().values()))["runs"][0]["prompts"])


def equality() -> str:
    """One line for each run: what happened in it, and how many prompts have the tokens and records of `generate()`."""
    rows = []
    for scenario in _scenarios().values():
        for time, run in enumerate(scenario["runs"]):
            label = scenario["what"] if time == 0 else "the same prompts again"
            of, guarded = run["prompts"], scenario["adapter"] != "none"
            happened = {**scenario["passes"], "cached tokens": run["cached_tokens"]}
            names = {"pieces": "pieces", "resumed": "resumed", "drafts": "drafts", "cached tokens": "cached tokens"}
            said = [f"{happened[key]} {name}" for key, name in names.items() if happened.get(key)]
            records = f"{run['records']}/{of}" if guarded else ""
            fired = f"{run['fired']}, {run['changed']}" if guarded else ""
            rows.append([label, ", ".join(said), f"{run['tokens']}/{of}", records, fired])
    return table(["run", "happened", "tokens equal", "records equal", "fired, changed"], rows)


def all_equal() -> bool:
    """Whether all runs have the tokens of `generate()`, and its records."""
    for scenario in _scenarios().values():
        recorded = scenario["adapter"] != "none"
        for run in scenario["runs"]:
            if run["tokens"] != run["prompts"] or (recorded and run["records"] != run["prompts"]):
                return False
    return True


def soak() -> dict[str, Any]:
    """What was measured of requests at random."""
    found: dict[str, Any] = read_json("serving_soak.json")
    return found


def fails_closed(when: str) -> str:
    """One line for each part that is taken away: what is said."""
    cases = [case for case in read_json("serving_fails_closed.json")["cases"] if case["when"] == when]
    return table(["part", "says"], [[case["part"], _cell(case["said"])] for case in cases], left=2)


def version() -> str:
    """Version of vLLM, without the patch."""
    return ".".join(next(iter(_scenarios().values()))["vllm"].split(".")[:2])


def failing_parts(*when: str) -> int:
    """Parts that are taken away."""
    return sum(case["when"] in when for case in read_json("serving_fails_closed.json")["cases"])


def _cell(text: str) -> str:
    """Return a message as a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def equal_share() -> str:
    """Answers of all runs with a guardrail that have the tokens of `generate()`, of how many."""
    runs = [run for scenario in _scenarios().values() if scenario["adapter"] != "none" for run in scenario["runs"]]
    return f"{sum(run['tokens'] for run in runs)} of {sum(run['prompts'] for run in runs)}"
