"""One row of an audit: the measurements of an attack at one strength."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows
from sae_unlearn.evaluation.report.files import read_as


RECALL = "alias_recall"

ANSWERABLE = 0.05
"""A form is answerable if the 95 % interval of the base's recall begins here or above."""


@dataclass(frozen=True)
class AuditRow:
    """Measurements of an attack at one strength.

    Attributes:
        attack (str): Name of the attack; "none" for the questions as they are.
        variant (str): Variant of the attack, such as the place of the filler.
        strength (float): In the unit of the attack; variants without a strength are numbered from 1.
        audited (tuple of Figure): Figures of the audited model.
        base (tuple of Figure, *optional*, defaults to ()): The control: figures of the model without its adapters under
            the same attack.
        change (Estimate, *optional*): Paired change of the recall of forgotten facts by the attack. None if there is
            nothing to compare with.
        control (bool, *optional*, defaults to False): The row is a control of another row, not an attack.
    """

    attack: str
    variant: str
    strength: float
    audited: tuple[Figure, ...]
    base: tuple[Figure, ...] = ()
    change: Estimate | None = None
    control: bool = False

    def find(self, metric: str = RECALL, side: str = "forget", base: bool = False) -> Figure | None:
        """Return a figure of the audited model or of the base, or None if it was not measured.

        Args:
            metric (str, *optional*, defaults to "alias_recall"): Name of the metric.
            side (str, *optional*, defaults to "forget"): "forget" or "retain".
            base (bool, *optional*, defaults to False): Take the figure of the base.
        """
        figures = self.base if base else self.audited
        return next((figure for figure in figures if (figure.metric, figure.side) == (metric, side)), None)

    def fires(self, side: str = "forget") -> Figure | None:
        """Return the share of facts on which any guardrail fired, or None without guardrails.

        Args:
            side (str, *optional*, defaults to "forget"): "forget" or "retain".

        Raises:
            UnlearnError: If the figures of the guardrails are of different rows.
        """
        found = [figure for figure in self.audited if figure.metric.startswith("fires:") and figure.side == side]
        return any_of("fires", found) if found else None

    @property
    def answerable(self) -> bool:
        """False if the base itself cannot answer this form of the question, so that the row shows nothing.

        It can if the 95 % interval of its recall of the forgotten facts begins at `ANSWERABLE` or above. A row without
        figures of the base counts as answerable, and so does a control.
        """
        base = self.find(base=True)
        return self.control or base is None or base.estimate.low >= ANSWERABLE

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a mapping that JSON can hold."""
        figures = {name: [f.to_dict() for f in getattr(self, name)] for name in ("audited", "base")}
        change = None if self.change is None else self.change.to_dict()
        return self.__dict__ | figures | {"change": change}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "AuditRow":
        """Return the row from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing, unknown or of another type; the message names it.
        """
        with read_as("row of an audit"):
            figures = {name: tuple(Figure.from_dict(one) for one in stored[name]) for name in ("audited", "base")}
            change = None if stored["change"] is None else Estimate.from_dict(stored["change"])
            return cls(**(dict(stored) | figures | {"change": change}))


def any_of(metric: str, figures: Iterable[Figure]) -> Figure:
    """Return the share of rows on which at least one of several shares of the same rows succeeded.

        v_i = max_k v_ik

    Args:
        metric (str): Name of the new figure.
        figures (iterable of Figure): Shares of the same rows.

    Raises:
        UnlearnError: If `figures` is empty, or they are shares of different rows.
    """
    figures = list(figures)
    if len({figure.groups for figure in figures}) != 1:
        raise UnlearnError(
            f"figures: expected shares of the same rows, got {len(figures)} of {len({f.groups for f in figures})} sets."
        )
    hits = torch.tensor([figure.values for figure in figures]).amax(dim=0)
    first = figures[0]
    subjects = [str(group) for group in first.groups]
    return figure_of_rows(first.side, first.data, metric, "share", hits, subjects, first.rows)
