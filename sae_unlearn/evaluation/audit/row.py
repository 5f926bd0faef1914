"""One row of an audit: an attack at one strength, and what was measured there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, plain_estimate
from sae_unlearn.evaluation.report.files import read_as


RECALL = "alias_recall"


@dataclass(frozen=True)
class AuditRow:
    """What an attack brought at one strength.

    Attributes:
        attack: name of the attack; "none" for the questions as they are.
        variant: which way of it.
        strength: see the attack; categories are numbered from 1.
        audited: figures of the audited model.
        base: figures of the model without its adapters in the same attack, the control; empty where there is none.
        change: of the recall of forgotten facts by the attack, paired; None where there is nothing to compare with.
        control: whether the row is a control of another row, and no attack itself.
    """

    attack: str
    variant: str
    strength: float
    audited: tuple[Figure, ...]
    base: tuple[Figure, ...] = ()
    change: Estimate | None = None
    control: bool = False

    def find(self, metric: str = RECALL, side: str = "forget", base: bool = False) -> Figure | None:
        """A figure of the audited model, or of the base."""
        figures = self.base if base else self.audited
        return next((figure for figure in figures if (figure.metric, figure.side) == (metric, side)), None)

    def fires(self, side: str = "forget") -> Figure | None:
        """How often any guardrail of the audited model fired; None without guardrails."""
        found = [figure for figure in self.audited if figure.metric.startswith("fires:") and figure.side == side]
        return any_of("fires", found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        figures = {name: [f.to_dict() for f in getattr(self, name)] for name in ("audited", "base")}
        change = None if self.change is None else plain_estimate(self.change)
        return self.__dict__ | figures | {"change": change}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "AuditRow":
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else, naming what is wrong.
        """
        with read_as("row of an audit"):
            figures = {name: tuple(Figure.from_dict(one) for one in stored[name]) for name in ("audited", "base")}
            change = None if stored["change"] is None else Estimate(**stored["change"])
            return cls(**(dict(stored) | figures | {"change": change}))


def any_of(metric: str, figures: Iterable[Figure]) -> Figure:
    """The share of rows on which at least one of several shares of the same rows succeeded.

    Raises:
        ValueError: they are of other rows, or none.
    """
    figures = list(figures)
    if len({figure.groups for figure in figures}) != 1:
        raise ValueError(f"{len(figures)} figures of {len({f.groups for f in figures})} sets of rows; give one set's.")
    hits = torch.tensor([figure.values for figure in figures]).amax(dim=0)
    first = figures[0]
    subjects = [str(group) for group in first.groups]
    return figure_of_rows(first.side, first.data, metric, "share", hits, subjects, first.rows)
