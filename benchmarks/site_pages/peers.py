"""Tables of the page that puts a guardrail beside its peers."""

from typing import Any

from benchmarks.speed.peer_traits import FIT_TRAITS, FORMER, OURS, TRAITS

from .markdown_text import figure, interval, number, table
from .results import read_json


WHOLE, THIN = "peers_speed", "peers_speed_thin"
NOT_PEERS = ("none", "guardrail, quiet", OURS, FORMER)
PLACES = {
    (WHOLE, "step, batch 1"): "token, 1 row",
    (WHOLE, "step, batch 8"): "token, 8 rows",
    (WHOLE, "prefill, batch 1"): "prompt of 512",
    (THIN, "step, batch 1"): "one layer, 1 row",
    (THIN, "step, batch 8"): "one layer, 8 rows",
}


def cell(file: str, key: str) -> dict[str, Any]:
    return read_json(f"{file}.json")["cells"][key]


def arm(file: str, key: str, name: str) -> dict[str, Any]:
    return cell(file, key)["arms"][name]


def traits() -> str:
    """What each arm does, and what it adds to a call on a single token."""
    found = cell(WHOLE, "step, batch 1")
    rows = []
    for name in (name for name in TRAITS if name != "none"):
        edits = "not timed" if name in found["left_out"] else "yes" if found["edits_one_token"][name] else "no"
        edits = {"LoRA": "starts at 0"}.get(name, edits)
        rows.append([name, *TRAITS[name], edits])
    return table(["", "gate", "decided on", "edit", "edits a decoded token"], rows, left=5)


def ratios() -> str:
    """The time of our step over each peer's, by place."""
    rows = []
    for name in (name for name in TRAITS if name not in NOT_PEERS):
        rows.append([name, *(_ours(file, key, name) for file, key in _whole())])
    header = [PLACES[place] for place in _whole()]
    return table(["guardrail that fires / peer", *header], rows)


def added() -> str:
    """The added milliseconds of each arm on one layer."""
    places = [place for place in PLACES if place[0] == THIN]
    rows = [[name, *(_added(*place, name) for place in places)] for name in TRAITS if name != "none"]
    return table(["added ms", *(PLACES[place] for place in places)], rows)


def kernels(batch: int, name: str) -> int:
    """Return the operators that an arm adds to a decoded token."""
    return arm(WHOLE, f"step, batch {batch}", name)["added_kernels"]


def former(file: str, batch: int) -> str:
    """Return our step over that of the former gate, with its interval."""
    return _ours(file, f"step, batch {batch}", FORMER)


def former_value(file: str, batch: int, key: str = "ratio") -> float:
    return arm(file, f"step, batch {batch}", FORMER)["ours"][key]


def more_than_former(batch: int) -> str:
    """Return what our gate adds on one layer over what the former adds."""
    a = arm(THIN, f"step, batch {batch}", FORMER)["adds"]
    return figure(1 / a["times_less"], 1 / a["high"], 1 / a["low"])


def against(name: str, key: str = "step, batch 1", file: str = WHOLE) -> str:
    """Return the time of our guardrail over that of a peer."""
    return _ours(file, key, name)


def has_prompt() -> bool:
    """Return True if the prompt was timed."""
    return (WHOLE, "prefill, batch 1") in _timed()


def base(file: str, key: str) -> str:
    """Return milliseconds without anything, and rounds."""
    a = arm(file, key, "none")
    return f"{number(a['ms'], 1)} ms ({a['rounds']} rounds)"


def ahead(peers: tuple[str, ...], places: tuple[tuple[str, str], ...], end: str = "ratio_high") -> bool:
    """Return True if our time is below each peer's at each place, by the upper end of its interval or another."""
    return all(arm(*place, name)["ours"][end] < 1 for place in places for name in peers if name in cell(*place)["arms"])


def fits() -> str:
    """Times of the fits."""
    found = cell(WHOLE, "fit")
    rows = []
    for name, about in FIT_TRAITS.items():
        a = found["arms"].get(name)
        if a is None:
            rows.append([name, about, found["left_out"][name], "–", "–"])
            continue
        ours = figure(a["ours"]["ratio"], a["ours"]["ratio_low"], a["ours"]["ratio_high"])
        rows.append([name, about, number(a["ms"] / 1e3, 1), figure(a["ratio"], a["ratio_low"], a["ratio_high"]), ours])
    return table(["", "what it does", "seconds", "time / truncated", "fit / it"], rows, left=2)


def fit_against(name: str) -> str:
    """Return the time of our fit over that of a peer."""
    return _ours(WHOLE, "fit", name)


def passes() -> dict[str, float]:
    """Return the time of the fit without regressions over that of the passes it needs."""
    return cell(WHOLE, "fit")["fit without regressions over its passes"]


def width() -> str:
    """Return the width of the peers' SAE."""
    return f"{read_json(f'{WHOLE}.json')['settings']['width']:,}"


def fit_corpus() -> str:
    """Return rows, tokens, layer and width of the fits."""
    found = cell(WHOLE, "fit")
    rows = found["rows"]["forget"]
    return (
        f"{rows} paragraphs of each side, cut to {found['length']} tokens, up to layer {found['layer']} of "
        f"{found['layers']}, an SAE of width {found['d_sae']:,}, {found['arms']['fit']['rounds']} rounds."
    )


def regressions() -> str:
    r = cell(WHOLE, "fit")["regressions"]
    return figure(r["seconds"], r["low"], r["high"])


def throughput() -> str:
    """Return the throughput of the fit without regressions over that of the passes it needs."""
    p = passes()
    return figure(1 / p["ratio"], 1 / p["ratio_high"], 1 / p["ratio_low"])


def left_out() -> list[str]:
    """Return the arms that were not timed, with their reasons."""
    found = {k: v for file, key in _timed() for k, v in cell(file, key)["left_out"].items()}
    return [f"{name}: {reason}" for name, reason in (found | cell(WHOLE, "fit")["left_out"]).items()]


def load() -> str:
    """Return the range of the load average while it was timed."""
    cells = [cell(*place) for place in _timed()] + [cell(WHOLE, "fit")]
    values = [c["machine"][key][0] for c in cells for key in ("load_average_before", "load_average")]
    return interval(min(values), max(values), 1)


def _timed() -> list[tuple[str, str]]:
    return [(file, key) for file, key in PLACES if key in read_json(f"{file}.json")["cells"]]


def _whole() -> list[tuple[str, str]]:
    return [place for place in _timed() if place[0] == WHOLE]


def _ours(file: str, key: str, name: str) -> str:
    found = cell(file, key)
    if name not in found["arms"]:
        return "left out"
    a = found["arms"][name]["ours"]
    return figure(a["ratio"], a["ratio_low"], a["ratio_high"])


def _added(file: str, key: str, name: str) -> str:
    found = cell(file, key)
    if name not in found["arms"]:
        return "left out"
    a = found["arms"][name]
    return figure(a["added_ms"], a["added_ms_low"], a["added_ms_high"], 2)
