"""What a claim is: something to measure on a topic, and a rule that says what the figures come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.parts import Parts
from benchmarks.forget.cached_front import Front
from benchmarks.forget.choice import BUDGET
from benchmarks.forget.fitting import fitted
from benchmarks.forget.measures import SIDES, compared, guarded_losses
from benchmarks.forget.setting import Setting
from sae_unlearn.evaluation import Estimate
from sae_unlearn.guardrail import GuardrailError


HOLDS, DOES_NOT, CANNOT = "holds", "does not hold here", "cannot be tested here"
NOT_MEASURED = "not measured"
DEFAULT_DOSE = 0.5  # residual norms, the library's own


@dataclass(frozen=True)
class Work:
    """What a claim is given besides the setting.

    Attributes:
        folder: the data folder.
        results: the folder of the cells of `benchmarks.forget.compare`.
        base: the bare model's figures, `guardrail_baselines.base_cell`.
        front: what the layers up to the guarded one make of texts, for `cached_front`.
        arguments: of the command line, which give the same setting to another process, but for the topic.
        quick: whether a reduced run is wanted.
        part: keeps what has been measured of the claim.
    """

    folder: Path
    results: Path
    base: dict[str, Any]
    front: Front
    arguments: Sequence[str] = ()
    quick: bool = False
    part: Parts = field(default_factory=Parts)


@dataclass(frozen=True)
class Verdict:
    """What the figures come to.

    Attributes:
        verdict: HOLDS, DOES_NOT, CANNOT or NOT_MEASURED.
        figure: the figures it rests on.
    """

    verdict: str
    figure: str


@dataclass(frozen=True)
class Claim:
    """A claim of the abstract.

    Attributes:
        title: the claim, shortly.
        rule: when it holds, in words; `judge` is the same in code.
        measure: the figures of one topic, as plain data.
        judge: from the figures of all topics, at least one.
    """

    title: str
    rule: str
    measure: Callable[[Setting, Work], dict[str, Any]]
    judge: Callable[[Sequence[dict[str, Any]]], Verdict]


def holds(yes: bool, figure: str) -> Verdict:
    """HOLDS or DOES_NOT."""
    return Verdict(HOLDS if yes else DOES_NOT, figure)


def outcome(
    setting: Setting, base: dict[str, Any], options: dict[str, Any], forget: list[str] | None = None
) -> dict[str, Any]:
    """A guardrail with these options of `fit_guardrail` on the test texts: `{"test", "other_test"}`, or `{"refused"}`
    with the reason that no guardrail could be fitted."""
    try:
        with fitted(setting, options, forget) as guarded:
            return figures_on_test(setting, guarded, base)
    except GuardrailError as error:
        return {"refused": str(error)}


def figures_on_test(setting: Setting, guarded: Any, base: dict[str, Any]) -> dict[str, Any]:
    """The test texts under the guardrails that are on the model."""
    return {
        part: compared(
            *_with_base(guarded_losses(setting, guarded, getattr(setting.texts, part), _tensor(base[part])), base[part])
        )
        for part in SIDES
    }


def pooled(found: Sequence[dict[str, Any]], part: str) -> Estimate:
    """The mean change of loss over the test texts of all topics."""
    return Estimate.mean(torch.tensor([value for one in found for value in one[part]["changes"]]))


def within(found: Sequence[dict[str, Any]], budget: float = BUDGET) -> bool:
    """Whether other text loses no more than the budget, over all topics."""
    return pooled(found, "other_test").value <= budget


def _with_base(two: tuple[torch.Tensor, torch.Tensor], base: list[float]) -> tuple[Any, ...]:
    losses, fired = two
    return losses, base, fired


def _tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
