"""Tables of speed and memory."""

from math import inf, isfinite
from typing import Any

from .markdown_text import figure, interval, number, table
from .results import read_json


WHOLE, THIN, WIDE = "inference_speed", "inference_speed_thin", "inference_speed_2b"
COMPILED, WIDE_COMPILED = "inference_speed_compiled", "inference_speed_2b_compiled"
ARMS = {
    "off": "guardrail disabled",
    "idle": "guardrail, quiet",
    "fires": "guardrail, fires",
    "fires N=200": "200 features, fires",
    "fires x4": "four guardrails, fire",
    "sae 4k": "whole SAE, 4k",
    "sae 16k": "whole SAE, 16k",
    "sae 65k": "whole SAE, 65k",
    "sae 131k": "whole SAE, 131k",
    "lora 16": "LoRA of rank 16",
}

OF_RATIO = 'The gates have `statistic="ratio"`; the default, `windowed`, reads some hundred columns more.'


def cell(file: str, phase: str, batch: int) -> dict[str, Any]:
    """Return what was timed at one batch size: "step", "prefill" or "compiled"."""
    return read_json(f"{file}.json")["cells"][f"{phase}, batch {batch}"]


def arm(file: str, phase: str, batch: int, name: str) -> dict[str, Any]:
    return cell(file, phase, batch)["arms"][name]


def arms(file: str, phase: str, batch: int) -> str:
    """Added time of every arm at one batch size."""
    rows = []
    for name, label in ARMS.items():
        if name in cell(file, phase, batch)["arms"]:
            a = arm(file, phase, batch, name)
            rows.append([label, _added(a), _ratio(a), str(a["added_kernels"]), _megabytes(a["added_peak_bytes"])])
    return table(["", "added ms", "time / none", "kernels", "peak MB"], rows)


def base_ms(file: str, phase: str, batch: int) -> str:
    """Return the time without an adapter."""
    return number(arm(file, phase, batch, "none")["ms"], 1)


def rounds(file: str, phase: str, batch: int) -> int:
    return arm(file, phase, batch, "none")["rounds"]


def added(file: str, phase: str, batch: int, name: str) -> str:
    """Return the added milliseconds with their interval."""
    return _added(arm(file, phase, batch, name))


def added_value(file: str, phase: str, batch: int, name: str) -> float:
    return arm(file, phase, batch, name)["added_ms"]


def share(name: str = "fires", batch: int = 1) -> tuple[float, float, float]:
    """Return what a guardrail adds on one layer, in percent of the whole model's step."""
    a, whole = arm(THIN, "step", batch, name), arm(WHOLE, "step", batch, "none")["ms"]
    return tuple(100 * a[key] / whole for key in ("added_ms", "added_ms_low", "added_ms_high"))  # type: ignore[return-value]


def by_batch(file: str, phase: str, *names: str) -> str:
    """Added time of some arms, by batch size."""
    cells = read_json(f"{file}.json")["cells"]
    batches = [key for key in cells if key.startswith(f"{phase}, ")]
    rows = []
    for key in batches:
        found = cells[key]["arms"]
        batch = key.removeprefix(f"{phase}, batch ")
        rows.append([batch, number(found["none"]["ms"], 1), *(_added(found[name]) for name in names)])
    return table(["rows", "step without, ms", *(ARMS[name] for name in names)], rows)


def whole_sae(width: str = "16k") -> str:
    """How many times as much time the whole SAE adds."""
    places = (
        ("width 640, decoded token", THIN, "step"),
        ("width 2304, decoded token", WIDE, "step"),
        ("width 640, compiled", COMPILED, "compiled"),
        ("width 2304, compiled", WIDE_COMPILED, "compiled"),
        ("width 640, prompt", THIN, "prefill"),
    )
    rows = []
    for label, file, phase in places:
        cells = read_json(f"{file}.json")["cells"]
        for key in (key for key in cells if key.startswith(f"{phase}, ")):
            pair = [_times(cells[key][f"sae {width} over {name}"]) for name in ("idle", "fires")]
            rows.append([label, key.removeprefix(f"{phase}, batch "), *pair])
    return table(["one layer", "rows", "quiet gate", "gate fires"], rows)


def times(file: str, phase: str, batch: int, name: str = "fires", width: str = "16k") -> str:
    return _times(cell(file, phase, batch)[f"sae {width} over {name}"])


def times_value(file: str, phase: str, batch: int, name: str = "fires", width: str = "16k") -> float:
    """Return the ratio, or its lower end where the upper one is infinite."""
    t = cell(file, phase, batch)[f"sae {width} over {name}"]
    return t["times_less"] if isfinite(t["high"]) else t["low"]


def growth(what: str) -> str:
    """Added time as one size grows."""
    rows = []
    for key, found in read_json("growth_speed.json")["cells"].items():
        name, _, size = key.rpartition(", ")
        if name == what:
            row = [f"{int(size):,}"]
            for a in ("guardrail", "whole SAE"):
                row += [_added(found["arms"][a]), number(found["arms"][a]["limit_ms"], 3)] if a in found["arms"] else []
            rows.append(row)
    header = [what.split(",")[0], "guardrail, ms", "limit"]
    return table(header + (["whole SAE, ms", "limit"] if len(rows[0]) > 3 else []), rows)


def growth_value(what: str, size: int, name: str = "guardrail", key: str = "added_ms") -> float:
    return read_json("growth_speed.json")["cells"][f"{what}, {size}"]["arms"][name][key]


def growth_ratio(what: str, size: int) -> float:
    """Return the whole SAE's added time over the guardrail's."""
    return growth_value(what, size, "whole SAE") / growth_value(what, size)


def fitting() -> str:
    """Throughput of a fit's parts."""
    found = read_json("fitting_speed.json")["cells"]["fitting"]
    labels = {
        "truncated": "model up to the layer",
        "residuals": "the same with the fit's checks",
        "fit": "**fit**: with the SAE and the sums",
        "full": "whole model",
        "published": "published procedure",
    }
    rows = []
    for name, label in labels.items():
        a = found["arms"][name]
        rate = 1000 * found["tokens"] / a["ms"]
        low, high = (1 / a[key] for key in ("ratio_high", "ratio_low"))
        rows.append([label, number(rate, 0), figure(1 / a["ratio"], low, high)])
    return table(["pass", "tokens/s", "throughput / truncated"], rows)


def fitting_value(key: str) -> Any:
    return read_json("fitting_speed.json")["cells"]["fitting"][key]


def fitting_rate(name: str) -> float:
    a = read_json("fitting_speed.json")["cells"]["fitting"]["arms"]
    return 1 / a[name]["ratio"]


def fitting_memory() -> str:
    """Peak memory and disk of a whole fit, by rows."""
    found = read_json("fitting_memory.json")["bytes"]
    rows = [
        [procedure, rows_, number(f["memory"] / 1e6, 0), number(f["disk"] / 1e6, 2)]
        for procedure, by_rows in found.items()
        for rows_, f in by_rows.items()
    ]
    return table(["procedure", "rows a side", "peak memory, MB", "on disk, MB"], rows)


def memory_growth(procedure: str = "fit") -> str:
    """Return how much memory ten times the corpus adds, in MB."""
    few, many = read_json("fitting_memory.json")["bytes"][procedure].values()
    return number((many["memory"] - few["memory"]) / 1e6, 0, True)


def training() -> str:
    """Time of a training step's parts."""
    labels = {
        "plain": "plain LoRA step on the same rows",
        "step": "**alignment step**",
        "no_kl": "without the retain rows",
        "reference": "reference pass over the retain rows",
    }
    found = read_json("training_speed.json")["cells"]["training"]["arms"]
    rows = []
    for name, label in labels.items():
        a = found[name]
        rows.append([label, f"{a['ms']:,.0f}", figure(a["ratio"], a["ratio_low"], a["ratio_high"]), str(a["rounds"])])
    return table(["step", "ms", "time / plain", "rounds"], rows)


def training_value(key: str) -> Any:
    return read_json("training_speed.json")["cells"]["training"][key]


def training_ratio(name: str = "step") -> tuple[float, float, float]:
    a = read_json("training_speed.json")["cells"]["training"]["arms"][name]
    return a["ratio"], a["ratio_low"], a["ratio_high"]


def cold_start() -> str:
    """Seconds of an import and of an attachment."""
    found = read_json("cold_start.json")["cells"]["cold start"]
    timed = {name: f for name, f in found.items() if isinstance(f, dict) and "seconds" in f}
    rows = [[name, figure(f["seconds"], f["low"], f["high"], 3), str(f["runs"])] for name, f in timed.items()]
    return table(["", "seconds", "runs"], rows)


def cold_value(name: str) -> float:
    return read_json("cold_start.json")["cells"]["cold start"][name]["seconds"]


def machine(file: str = THIN) -> str:
    """Return the processor, threads and versions of a file's first cell."""
    m = next(iter(read_json(f"{file}.json")["cells"].values()))["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return f"{m['cpu']}, {m['cores']} cores, {m['threads']} thread; {versions}"


def _added(a: dict[str, Any]) -> str:
    return figure(a["added_ms"], a["added_ms_low"], a["added_ms_high"])


def _ratio(a: dict[str, Any]) -> str:
    return f"{number(a['ratio'], 3)} ({interval(a['ratio_low'], a['ratio_high'], 3)})"


def _megabytes(size: float) -> str:
    return number(size / 1e6)


def _times(t: dict[str, float]) -> str:
    """A ratio with its interval; only its lower end where the guardrail's time cannot be told from none."""
    if t["high"] == inf:
        return f"at least {number(t['low'], 1)}"
    return f"{number(t['times_less'], 1)} ({interval(t['low'], t['high'], 1)})"
