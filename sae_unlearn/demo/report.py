"""Results of the demo as a table, and answers before and after in two columns."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sae_unlearn.demo.measure import Snapshot
from sae_unlearn.demo.texts import SIDES, DemoTexts
from sae_unlearn.evaluation import bootstrap_interval
from sae_unlearn.files.terminal import printable, side_by_side, table
from sae_unlearn.guardrail import SAEGuardrailConfig
from sae_unlearn.stats import wilson_interval


_NAMES = {"forget": "the topic", "retain": "other things"}


@dataclass(frozen=True)
class Line:
    """One line of the table, with 95 % intervals.

    Attributes:
        title (str): Name of the measurement.
        unit (str): "rate" or "nats".
        before (float or None): Value without the guardrail; None for fire rates.
        before_interval (tuple[float, float] or None): Wilson interval of a rate; None for losses.
        after (float): Value with the guardrail.
        after_interval (tuple[float, float] or None): Wilson interval of a rate; None for losses.
        change (float or None): After minus before, paired by row; None without `before`.
        change_interval (tuple[float, float] or None): Bootstrap interval of the change; None without `before`.
        n (int): Number of rows or facts.
    """

    title: str
    unit: str
    before: float | None
    before_interval: tuple[float, float] | None
    after: float
    after_interval: tuple[float, float] | None
    change: float | None
    change_interval: tuple[float, float] | None
    n: int

    def as_data(self) -> dict[str, Any]:
        """Return the line as plain data for JSON."""
        return asdict(self)

    def cells(self) -> list[str]:
        """Return the line as a row of the printed table."""
        show = _percent if self.unit == "rate" else _nats
        return [
            self.title,
            show(self.before, self.before_interval),
            show(self.after, self.after_interval),
            show(self.change, self.change_interval, signed=True),
            str(self.n),
        ]


def lines_of(before: Snapshot, after: Snapshot) -> list[Line]:
    """Return the lines of the table: recall, loss and fire rates of both sides."""
    lines = []
    for side in SIDES:
        old = torch.tensor([r.right for r in before.recalls[side]], dtype=torch.float64)
        new = torch.tensor([r.right for r in after.recalls[side]], dtype=torch.float64)
        lines.append(
            Line(
                f"recall of facts of {_NAMES[side]}",
                "rate",
                *_rate(int(old.sum()), len(old)),
                *_rate(int(new.sum()), len(new)),
                *_paired(new - old),
                len(old),
            )
        )
    for side in SIDES:
        old, new = before.losses[side], after.losses[side]
        lines.append(
            Line(
                f"loss on text on {_NAMES[side]}, nats per token",
                "nats",
                float(old.mean()),
                None,
                float(new.mean()),
                None,
                *_paired(new - old),
                len(old),
            )
        )
    for title, counts, rows in (
        ("gate fires on text on", after.fired_texts, after.losses),
        ("gate fires on facts of", after.fired_facts, after.recalls),
    ):
        for side in SIDES:
            n = len(rows[side])
            lines.append(
                Line(
                    f"{title} {_NAMES[side]}", "rate", None, None, *_rate((counts or {}).get(side, 0), n), None, None, n
                )
            )
    return lines


def measured_text(lines: list[Line], config: SAEGuardrailConfig) -> str:
    """Return the table and a description of the guardrail as text."""
    calibration = config.calibration or {}
    corpora = calibration["corpora"]
    rows = [["", "before", "after", "change", "n"], *(line.cells() for line in lines)]
    text = [
        "What it forgets and what it keeps, on text and facts that had no part in the fit (95 % intervals in brackets)",
        "",
        table(rows),
        "",
        f"  guardrail   {config.num_features} features after layer {config.layer}, chosen on "
        f"{corpora['forget']['selection_rows']} + {corpora['retain']['selection_rows']} paragraphs",
        f"  gate        fires above {config.threshold:.3f}, between the "
        f"{calibration['threshold_percentile']:g}th percentile of {corpora['retain']['threshold_rows']} other "
        f"paragraphs and the lower quartile of {corpora['forget']['threshold_rows']} of the topic",
        f"  dose        edits of {calibration['edit_to_residual']:.3f} of the residual stream's norm at hot tokens",
    ]
    for warning in calibration.get("warnings", []):
        first, *rest = textwrap.wrap(printable(warning), 100)
        text += [f"  warning     {first}", *(f"              {line}" for line in rest)]
    return "\n".join(text)


def answers_text(texts: DemoTexts, before: Snapshot, after: Snapshot) -> str:
    """Return the same prompts with their answers before and after, as text."""
    parts = ["The same beginnings, continued before and after"]
    for side in SIDES:
        for prompt, old, new in zip(texts.prompts[side], before.answers[side], after.answers[side], strict=True):
            columns = side_by_side(_one_line(old), _one_line(new), ("before", "after"), indent=4)
            parts.append(f"  [{_NAMES[side]}] {prompt} ...\n{columns}")
    return "\n\n".join(parts)


def _rate(hits: int, n: int) -> tuple[float, tuple[float, float]]:
    return hits / n, wilson_interval(hits, n)


def _paired(differences: torch.Tensor) -> tuple[float, tuple[float, float]]:
    return float(differences.mean()), bootstrap_interval(differences)


def _percent(value: float | None, interval: tuple[float, float] | None, signed: bool = False) -> str:
    if value is None:
        return ""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.0f} %" + (
        f" ({100 * interval[0]:{sign}.0f} to {100 * interval[1]:{sign}.0f})" if interval else ""
    )


def _nats(value: float | None, interval: tuple[float, float] | None, signed: bool = False) -> str:
    if value is None:
        return ""
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" + (f" ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})" if interval else "")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
