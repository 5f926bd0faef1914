"""Times of several arms, taken in one process in turns, and compared round by round."""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch


def interleaved(
    arms: dict[str, Callable[[], Any]],
    seconds: float,
    clock: str = "wall",
    least: int = 8,
    most: int = 400,
    warmup: int = 2,
) -> dict[str, np.ndarray]:
    """Run every arm once per round, in an order drawn anew, until `seconds` are over.

    Args:
        clock: "wall", or "process" for the processor time of this process, all threads together. With one thread on a
            quiet machine the two agree; on a busy machine only the second means anything.

    Returns:
        Seconds by arm, `[rounds]`; entry `i` of all arms is of the same round.
    """
    order, draw = list(arms), random.Random(0)
    for _ in range(warmup):
        for name in order:
            arms[name]()
    times: dict[str, list[float]] = {name: [] for name in order}
    start = time.perf_counter()
    while len(times[order[0]]) < least or (time.perf_counter() - start < seconds and len(times[order[0]]) < most):
        draw.shuffle(order)
        for name in order:
            times[name].append(timed(arms[name], clock))
    return {name: np.array(values) for name, values in times.items()}


def timed(call: Callable[[], Any], clock: str = "wall") -> float:
    """Seconds of one call, the device's work included."""
    now = {"wall": time.perf_counter, "process": time.process_time}[clock]
    wait()
    start = now()
    call()
    wait()
    return now() - start


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(times: dict[str, np.ndarray], arm: str, base: str) -> dict[str, float]:
    """Median over the rounds of `arm / base` and of `arm - base` in ms, each with a 95 % bootstrap interval."""
    ratio, added = times[arm] / times[base], (times[arm] - times[base]) * 1e3
    found = {"rounds": len(ratio), "ms": float(np.median(times[arm]) * 1e3)}
    for name, values in (("ratio", ratio), ("added_ms", added)):
        low, high = median_interval(values)
        found |= {name: float(np.median(values)), f"{name}_low": low, f"{name}_high": high}
    return found


def times_less(times: dict[str, np.ndarray], cheap: str, dear: str, base: str) -> dict[str, float]:
    """How many times less `cheap` adds to `base` than `dear` does: ratio of the median added times, with a 95 %
    bootstrap interval over rounds. The upper end is infinite where the cheap one's added time may be nothing."""
    added = np.stack([times[dear] - times[base], times[cheap] - times[base]])
    drawn = np.random.default_rng(0).integers(0, added.shape[1], (2000, added.shape[1]))
    medians = np.median(added[:, drawn], axis=-1)
    ratios = np.where(medians[1] > 0, medians[0] / np.maximum(medians[1], 1e-12), np.inf)
    low, high = (float(np.quantile(ratios, q, method="nearest")) for q in (0.025, 0.975))
    middle = np.median(added, axis=1)
    return {"times_less": float(middle[0] / middle[1]) if middle[1] > 0 else float("inf"), "low": low, "high": high}


def median_interval(values: np.ndarray) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    return tuple(float(q) for q in np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975]))


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were taken on, and how busy it was just now."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def timing_parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every timing: device, threads, clock, seconds and output."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "process"), default="wall", help="process: processor time")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, required=True, help="a .json; the table goes beside it as .txt")
    return parser


def write_cell(output: Path, settings: dict[str, Any], key: str, cell: dict[str, Any], table: str) -> None:
    """Add a cell to the JSON file `output`, write its table to a text file of that name, and print it."""
    Results(output, settings).add(key, cell)
    output.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
    print(table)


class Results:
    """A JSON file of finished cells, so that a run that was cut short goes on where it was."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.data = path, {"settings": settings, "cells": {}}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != settings:
                raise SystemExit(f"{path} was made with other settings ({found['settings']}); choose another --output.")
            self.data = found

    @property
    def cells(self) -> dict[str, Any]:
        return self.data["cells"]

    def add(self, key: str, cell: dict[str, Any]) -> None:
        self.cells[key] = cell
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)
