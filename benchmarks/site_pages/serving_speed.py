"""Tables of what a guardrail costs inside serving engines: time, and growth of the process."""

from typing import Any

from .markdown_text import figure, number, percent, table
from .results import RESULTS, read_json


ARMS = ("idle", "firing")
AIMS = {"demo": 0.03, "gemma-2-2b": 0.01}
"""Largest share that a guardrail should add, by model."""
VLLM = {"demo": "serving_speed.json", "gemma-2-2b": "serving_speed_2b.json"}
BATCHING = {"demo": "batching_speed.json", "gemma-2-2b": "batching_speed_2b.json"}

MEMORY = "serving_soak_memory.json"


def has(model: str, engine: str = "vllm") -> bool:
    """Whether a model was timed in an engine."""
    return (RESULTS / {"vllm": VLLM, "batching": BATCHING}[engine][model]).is_file()


def untimed() -> str:
    """A sentence on the kinds of passes of vLLM that were not timed, if any."""
    kinds = {"decode, 32 rows": "32 rows", "prefill, 4 prompts of 128 tokens": "prompts"}
    names = {"demo": "Gemma 3 270M", "gemma-2-2b": "the 2B shape"}
    missing = [
        f"{' and of '.join(what for kind, what in kinds.items() if kind not in _cases(model))} of {names[model]}"
        for model in names
        if has(model) and not set(kinds) <= set(_cases(model))
    ]
    return f"Not timed: passes of {'; of '.join(missing)}." if missing else ""


def has_memory() -> bool:
    """Whether the growth of processes was measured, of both kinds."""
    return (RESULTS / MEMORY).is_file() and {run["arm"] for run in memory()["runs"]} == {"bare", "guarded"}


def _cases(model: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(VLLM[model])["cases"]
    return found


def passes(model: str) -> str:
    """One line for each kind of pass of vLLM: its time without the guardrail, ratios to that, the share inside."""
    rows = []
    for name, case in _cases(model).items():
        ratios = [figure(*_ratio(case, arm), 3) for arm in ARMS]
        inside = [_share(case["inside"][arm]) for arm in ARMS]
        rows.append([name, str(case["idle"]["rounds"]), number(case["none_ms"], 0), *ratios, *inside])
    return table(["pass", "rounds", "ms without", "idle", "firing", "inside, idle, %", "inside, firing, %"], rows)


def _ratio(case: dict[str, Any], arm: str) -> tuple[float, float, float]:
    found = case[arm]
    return found["ratio"], found["ratio_low"], found["ratio_high"]


def _share(found: list[float]) -> str:
    return figure(*(100 * value for value in found), 2)


def inside(model: str) -> str:
    """The range over passes and arms of the share inside the guardrail."""
    shares = [case["inside"][arm][0] for case in _cases(model).values() for arm in ARMS]
    return f"{number(100 * min(shares), 2)} to {percent(max(shares), 2)}"


def inside_met(model: str) -> bool:
    """Whether the upper end of each share inside is below the aim."""
    return all(case["inside"][arm][2] < AIMS[model] for case in _cases(model).values() for arm in ARMS)


def verdict(model: str) -> str:
    """What the ratios of CPU time decide of the aim."""
    counts = {"within": 0, "above": 0, "open": 0}
    for case in _cases(model).values():
        for arm in ARMS:
            _, low, high = _ratio(case, arm)
            limit = 1 + AIMS[model]
            counts["within" if high <= limit else "above" if low > limit else "open"] += 1
    of = sum(counts.values())
    return (
        f"Of {of} ratios {counts['within']} lie within the aim with their whole interval, {counts['above']} above it, "
        f"and {counts['open']} are not decided"
    )


def _cells(model: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(BATCHING[model])["cells"]
    return found


def steps(model: str) -> str:
    """One line for each cell of `generate_batch`: time of a step and of the guardrail in it, idle and firing."""
    rows = []
    for name, cell in _cells(model).items():
        what = f"{cell['rows']} rows" if name.startswith("decode") else f"{cell['rows']} prompts"
        times = [f"{cell[arm]['guardrail_ms']:.2f}" for arm in ARMS]
        ratios = [figure(cell[arm]["ratio"], cell[arm]["ratio_low"], cell[arm]["ratio_high"], 4) for arm in ARMS]
        rows.append([what, f"{cell['idle']['step_ms']:.0f}", *times, *ratios, str(cell["steps"])])
    return table(["", "ms a step", "ms idle", "ms firing", "ratio idle", "ratio firing", "steps"], rows)


def cost(model: str, arm: str) -> str:
    """Range over the decoding cells of what an arm adds to a step of `generate_batch`."""
    added = [100 * (cell[arm]["ratio"] - 1) for name, cell in _cells(model).items() if name.startswith("decode")]
    return f"{min(added):.1f} to {max(added):.1f} %"


def memory() -> dict[str, Any]:
    """What was measured of the growth of processes."""
    found: dict[str, Any] = read_json(MEMORY)
    return found


def growth() -> str:
    """One line for each process: MiB that it grew by from the first tenth of the requests on."""
    rows = []
    for run in memory()["runs"]:
        curve = run["mib_by_tenth"]
        grown = [number(curve[tenth] - curve[0], 1) for tenth in (1, 4, 9)]
        rows.append([run["arm"], f"{run['requests']:,}", str(run["aborted"]), *grown, number(curve[9] - curve[4], 1)])
    return table(["process", "requests", "aborted", "at 20 %", "at 50 %", "at the end", "second half"], rows)


def later(arm: str) -> str:
    """MiB that the processes of an arm grew by in the second half, each."""
    halves = [run["mib_by_tenth"][9] - run["mib_by_tenth"][4] for run in memory()["runs"] if run["arm"] == arm]
    return " and ".join(number(value, 1) for value in halves)
