"""Gather what a guarded vLLM says when a part is taken away: `benchmarks/results/serving_fails_closed.json`.

    SAE_UNLEARN_FAILS_CLOSED=FILE nox -s vllm -- -k "fails_closed or limits or compiled"
    SAE_UNLEARN_FAILS_CLOSED=FILE pytest tests/cli/test_serve_command.py tests/engines/test_service_check.py
    python -m benchmarks.serving.fails_closed FILE

Paths of temporary folders and ids of requests are left out, and hashes are cut.
"""

import json
import re
import sys
from pathlib import Path


RESULTS = Path(__file__).resolve().parents[1] / "results" / "serving_fails_closed.json"
ORDER = ("start", "pass", "request", "serve", "check")


def main(file: str) -> None:
    """Write the results of the lines in `file`; of several with one part, the first. Other results stay."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in Path(file).read_text().splitlines():
        case = json.loads(line)
        case["said"] = re.sub(r"^sae-unlearn \w+: ", "", case["said"])
        case["said"] = re.sub(r"http://127\.0\.0\.1:\d+", "http://localhost:8000", case["said"])
        said = re.sub(r"(?<![\w:/])(/[\w.-]+)+/", "", case["said"]).split("\n")[0]
        said = re.sub(r"\b([0-9a-f]{4})[0-9a-f]{60}\b", r"\1...", said)
        case["said"] = re.sub(r"Request \d+\S*", "Request ID", said)
        found.setdefault((case["when"], case["part"]), case)
    for case in json.loads(RESULTS.read_text())["cases"] if RESULTS.is_file() else ():
        found.setdefault((case["when"], case["part"]), case)
    cases = sorted(found.values(), key=lambda case: ORDER.index(case["when"]))
    RESULTS.write_text(json.dumps({"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
