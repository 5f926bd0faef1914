"""Figures of ranked statistics, and the summary of all draws of `windowed_gate.py`."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.stats import auc


LOWEST_RATE = 1e-3
_STEPS = 300


def caught_at(topic: Tensor, other: Tensor, rate: float) -> float:
    """The share of the topic's rows above the lowest threshold that at most `rate` of the other rows exceed."""
    threshold = other.sort(descending=True).values[int(rate * len(other))]
    return float((topic > threshold).double().mean())


def log_auroc(topic: Tensor, other: Tensor) -> float:
    """The mean of `caught_at` over the logarithm of the rate, from 0.1 % to 100 %."""
    rates = torch.logspace(-3, 0, _STEPS, dtype=torch.float64).clamp(max=1 - 1e-9).tolist()
    return mean(caught_at(topic, other, rate) for rate in rates)


def ranked(topic: Tensor, other: Tensor) -> dict[str, float]:
    """How well the statistic tells the topic's rows from other rows, at any threshold."""
    return {
        "auroc": round(auc(topic, other), 4),
        "log_auroc": round(log_auroc(topic, other), 4),
        "at_1": round(caught_at(topic, other, 0.01), 4),
        "at_01": round(caught_at(topic, other, 0.001), 4),
        "n": [len(topic), len(other)],
    }


def collected(folder: Path) -> dict[str, Any]:
    """Per topic and gate each figure's mean, smallest and largest over the draws."""
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("*-[0-9].json")) if not _of_lengths(path)]
    topics = sorted({file["topic"] for file in files})
    found: dict[str, Any] = {"draws": {t: sum(file["topic"] == t for file in files) for t in topics}, "topics": {}}
    for topic in topics:
        mine = [file["gates"] for file in files if file["topic"] == topic]
        found["topics"][topic] = {gate: over_draws([draw[gate] for draw in mine if gate in draw]) for gate in mine[0]}
    return found


def lengths_collected(folder: Path) -> dict[str, Any]:
    """What `lengths` measured: the mean over the new topics, each of them, and the demo's."""
    files = [path for path in sorted(folder.glob("*-[0-9].json")) if _of_lengths(path)]
    records = [record for path in files for record in json.loads(path.read_text())["all"]]
    topics = sorted({record["topic"] for record in records})
    each = {topic: [record for record in records if record["topic"] == topic] for topic in topics}
    return {
        "draws": {topic: len({record["draw"] for record in mine}) for topic, mine in each.items()},
        "n": {t: {c: [n for _, n in both] for c, both in mine[0]["j"]["fires"].items()} for t, mine in each.items()},
        "new topics": by_lengths([record for record in records if record["topic"] != "demo"]),
        **{topic: by_lengths(mine) for topic, mine in each.items()},
    }


def _of_lengths(path: Path) -> bool:
    return path.name.startswith("lengths-")


def by_lengths(records: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """By the length that alarms are held to and condition: mean share of the topic's texts and of others that fire."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for longest in {record["lengths"]: None for record in records}:
        mine = [record["j"]["fires"] for record in records if record["lengths"] == longest]
        found[longest] = {
            name: [
                round(mean(one[name][side][0] / one[name][side][1] for one in mine), 4) if n else None
                for side, (_, n) in enumerate(both)
            ]
            for name, both in mine[0].items()
            if all(name in one for one in mine)
        }
    return found


def over_draws(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """`[mean, smallest, largest]` of each figure; of what fires, the share of the topic and of other text, and n."""
    found: dict[str, Any] = {"draws": len(draws), "fit_s": _three([draw["fit_s"] for draw in draws])}
    for name in ("rows", "short", "alone"):
        found[name] = {key: _three([d[name][key] for d in draws]) for key in ("auroc", "log_auroc", "at_1", "at_01")}
        found[name]["n"] = draws[0][name]["n"]
    found["fires"] = {
        name: [
            None if not n else {"share": _three([d["fires"][name][side][0] / n for d in draws]), "n": n}
            for side, (_, n) in enumerate(both)
        ]
        for name, both in draws[0]["fires"].items()
    }
    return found


def _three(values: list[float]) -> list[float]:
    return [round(v, 4) for v in (mean(values), min(values), max(values))]
