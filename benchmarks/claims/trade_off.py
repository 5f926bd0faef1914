"""Forget-utility trade-off: at matched damage, more is forgotten than by the gradient methods."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.claim import NOT_MEASURED, Claim, Verdict, Work, holds
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.choice import BUDGET, Candidate, pareto
from benchmarks.forget.fitting import try_doses
from benchmarks.forget.methods import GRADIENTS, OURS, RESIDUAL_DOSES, Guard
from benchmarks.forget.setting import Setting
from sae_unlearn.cards.plotting import new_canvas
from sae_unlearn.evaluation import Estimate


SWEPT = ({}, {"num_features": 10}, {"num_features": 20}, {"threshold_percentile": 95.0}, {"threshold": 0.0})
RULE = (
    f"at a damage of at most {BUDGET:g} nats on the test texts, the lower end of the paired interval of (ours - "
    "method) is above 0 for every gradient method, over all topics"
)


def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """The cells of `benchmarks.forget.compare`, and a sweep of guardrails on the validation texts."""
    doses = RESIDUAL_DOSES[1:2] if work.quick else RESIDUAL_DOSES
    found: dict[str, Any] = {"sweep": {}, "cells": {}}
    for change in SWEPT[:1] if work.quick else SWEPT:
        with cached_front(setting.model, setting.layer, work.front):
            candidates, _ = try_doses(setting, Guard(change, doses), work.base)
        found["sweep"][json.dumps(change)] = [c.to_dict() for c in candidates]
    for path in sorted(work.results.glob(f"{setting.texts.name}-*-{setting.seed}.json")):
        cell = json.loads(path.read_text())
        if cell["method"] in (OURS, *GRADIENTS):
            found["cells"][cell["method"]] = {k: cell.get(k) for k in ("candidates", "chosen", "test", "other_test")}
    return found


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`; a method with no state within the budget is beaten where ours has one."""
    missing = [m for m in (OURS, *GRADIENTS) if any(m not in topic["cells"] for topic in found)]
    if missing:
        return Verdict(NOT_MEASURED, f"no cells of {', '.join(missing)}; run benchmarks.forget.compare before")
    ours = [topic["cells"][OURS] for topic in found]
    if any(cell["chosen"] is None for cell in ours):
        return holds(False, "no dose of ours within the budget on every topic")
    damage = Estimate.mean(_changes(ours, "other_test"))
    parts, beaten = [f"other text {damage.value:+.3f}"], damage.value <= BUDGET
    for method in GRADIENTS:
        pairs = [
            (mine, topic["cells"][method])
            for mine, topic in zip(ours, found, strict=True)
            if topic["cells"][method]["chosen"]
        ]
        if not pairs:
            parts.append(f"{method} never within")
            continue
        gain = Estimate.mean(_changes([a for a, _ in pairs], "test") - _changes([b for _, b in pairs], "test"))
        beaten = beaten and gain.low > 0
        parts.append(f"over {method} {gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})")
    return holds(beaten, "; ".join(parts))


def draw(found: dict[str, Any], path: Path) -> None:
    """The picture of a topic: damage against forgetting on validation texts, with the front of each kind."""
    kinds = {"guardrails": [Candidate(**c) for some in found["sweep"].values() for c in some]}
    kinds |= {m: [Candidate(**c) for c in cell["candidates"]] for m, cell in found["cells"].items() if m != OURS}
    figure = new_canvas(6, 4, dpi=100)
    axes = figure.add_subplot()
    for name, candidates in kinds.items():
        front = pareto(candidates)
        (line,) = axes.plot([c.damage for c in front], [c.forgotten for c in front], marker="o", label=name)
        beaten = [c for c in candidates if c not in front]
        axes.scatter([c.damage for c in beaten], [c.forgotten for c in beaten], s=12, alpha=0.4, color=line.get_color())
    axes.axvline(BUDGET, color="grey", linestyle=":")
    axes.set_xlabel("other text: change of loss, nats per token")
    axes.set_ylabel("topic: change of loss, nats per token")
    axes.legend()
    figure.savefig(path)


def _changes(cells: Sequence[dict[str, Any]], part: str) -> torch.Tensor:
    return torch.tensor([v for cell in cells for v in cell[part]["changes"]], dtype=torch.float64)


CLAIM = Claim("forget-utility trade-off", RULE, measure, judge)
