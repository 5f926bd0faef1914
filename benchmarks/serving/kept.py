"""Scenarios that run once: each result is kept in a folder, and all are gathered in the results."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.reference import TOKENS


def run_or_write(
    folder: Path,
    kind: str,
    scenarios: Mapping[str, Any],
    names: Sequence[str],
    run: Callable[[Path, Any], dict[str, Any]],
    results: Path,
) -> bool:
    """Run the scenarios whose file `KIND-NAME.json` is not in `folder`; with `--write`, gather these files.

    Args:
        folder (Path): The folder of `reference`.
        kind (str): First part of the files' names.
        scenarios (Mapping): All scenarios by name.
        names (Sequence[str]): The scenarios to run, all if empty, or `--write`.
        run (Callable): Runs one scenario and returns what was found.
        results (Path): The file to gather in.

    Returns:
        bool: Whether all answers, and records where there are any, are those of `generate()`.
    """
    files = {name: folder / f"{kind}-{name}.json" for name in scenarios}
    if "--write" in names:
        found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
        results.write_text(json.dumps({"tokens_of_each": TOKENS, "scenarios": found}, indent=1) + "\n")
        return True
    equal = True
    for name in names or scenarios:
        if not files[name].is_file():
            found = run(folder, scenarios[name])
            files[name].write_text(json.dumps(found))
            print(name, json.dumps(found), flush=True)
        equal &= _is_equal(json.loads(files[name].read_text()))
    return equal


def _is_equal(found: dict[str, Any]) -> bool:
    kinds = ("tokens",) if found["adapter"] == "none" else ("tokens", "records")
    return all(run[kind] == run["prompts"] for run in found["runs"] for kind in kinds)
