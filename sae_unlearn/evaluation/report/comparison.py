"""Comparison of two reports on the same rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from sae_unlearn.checks import check_all, check_choice, check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure, Unit, group_sums, in_unit
from sae_unlearn.evaluation.report.files import StoredReport, read_as
from sae_unlearn.evaluation.report.report import Report, cell, markdown_table, shown, shown_interval
from sae_unlearn.stats import percentile_interval, ratio_draws


_ESTIMATES = ("before", "after", "change")


@dataclass(frozen=True)
class Change:
    """Change of one figure.

    Attributes:
        side, data, metric, unit (str): As in `Figure`.
        title (str): The metric in words.
        before, after (Estimate): The two figures.
        change (Estimate): After minus before, with the paired bootstrap interval over subjects, or over rows without
            subjects. If no row changed, the interval is a point, which says nothing about rows that were not measured.
    """

    side: str
    data: str
    metric: str
    title: str
    unit: Unit
    before: Estimate
    after: Estimate
    change: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the change as a mapping that JSON can hold."""
        return self.__dict__ | {name: getattr(self, name).to_dict() for name in _ESTIMATES}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Change":
        """Return the change from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing, unknown or of another type; the message names it.
        """
        with read_as("change of a comparison"):
            words: dict[str, Any] = {name: value for name, value in stored.items() if name not in _ESTIMATES}
            check_all(words.values(), str, "side, data, metric, title, unit")
            found = cls(**(words | {name: Estimate.from_dict(stored[name]) for name in _ESTIMATES}))
        check_choice("unit", found.unit, get_args(Unit))
        return found


@dataclass(frozen=True)
class Comparison(StoredReport):
    """Changes from one report to another.

    Attributes:
        before, after (str): Titles of the reports.
        changes (tuple of Change): Changes of the figures that both have.
        only_after (tuple of Figure, *optional*, defaults to ()): Figures of the second report only, such as fire rates.
    """

    stem = "comparison"
    about_what = "a comparison"
    has_picture = False

    before: str
    after: str
    changes: tuple[Change, ...]
    only_after: tuple[Figure, ...] = ()

    def to_markdown(self) -> str:
        """Return the changes as a Markdown table."""
        rows = []
        for one in self.changes:
            values = [f"{shown(e.value, one.unit)} ({shown_interval(e, one.unit)})" for e in (one.before, one.after)]
            change = shown(one.change.value, one.unit, signed=True)
            between = shown_interval(one.change, one.unit, signed=True)
            rows.append([one.side, one.data, one.title, *values, f"{change} ({between})", one.change.n])
        for figure in self.only_after:
            value = f"{shown(figure.estimate.value, figure.unit)} ({shown_interval(figure.estimate, figure.unit)})"
            rows.append([figure.side, figure.data, figure.title, "", value, "", figure.estimate.n])
        head = ["side", "data", "measure", "before", "after", "change", "n"]
        title = f"# {cell(self.before)}, then {cell(self.after)}"
        note = "95 % intervals in brackets; those of changes are paired, by subject or row."
        return "\n".join([title, "", note, "", *markdown_table(head, rows)]) + "\n"

    def to_card(self) -> str:
        """Return the part that a card shows: the whole table."""
        return self.to_markdown()

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a mapping that JSON can hold."""
        changes, only = ([one.to_dict() for one in found] for found in (self.changes, self.only_after))
        return {"before": self.before, "after": self.after, "changes": changes, "only_after": only}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Comparison":
        """Return the comparison from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing or of another type; the message names it.
        """
        with read_as("comparison"):
            changes = tuple(Change.from_dict(one) for one in stored["changes"])
            only = tuple(Figure.from_dict(one) for one in stored["only_after"])
            return cls(str(stored["before"]), str(stored["after"]), changes, only)


def compare(before: Report, after: Report, seed: int = 0) -> Comparison:
    """Return the changes from one report to another on the same rows.

        change = f(after) - f(before),   both drawn with the same subjects in every bootstrap draw

    Args:
        before, after (Report): The reports.
        seed (int, *optional*, defaults to 0): Seed of the bootstrap.

    Raises:
        UnlearnError: If the two have no figure in common, or one was measured on other rows.
    """
    check_is(before, Report, "before")
    check_is(after, Report, "after")
    known = {figure.key: figure for figure in before.figures}
    both = [figure for figure in after.figures if figure.values and figure.key in known]
    changes = [_change(known[figure.key], figure, seed) for figure in both]
    if not changes:
        raise UnlearnError(
            f"before={before.title!r}, after={after.title!r}: expected a common figure. Evaluate both on the same data."
        )
    only = tuple(figure for figure in after.figures if figure.key not in known)
    return Comparison(before.title, after.title, tuple(changes), only)


def _change(before: Figure, after: Figure, seed: int) -> Change:
    if (before.rows, before.groups) != (after.rows, after.groups):
        raise UnlearnError(
            f"{'/'.join(after.key)}: expected the same rows before ({len(before.values)}) and after "
            f"({len(after.values)}). Evaluate both models on the same data with the same settings."
        )
    change = paired_change(before, after, seed)
    return Change(
        after.side, after.data, after.metric, after.title, after.unit, before.estimate, after.estimate, change
    )


def paired_change(before: Figure, after: Figure, seed: int = 0) -> Estimate:
    """Return after minus before, drawn with the same subjects in every bootstrap draw.

    The caller must ensure that both are figures of the same rows.
    """
    draws = [in_unit(ratio_draws(*group_sums(figure), seed=seed), figure.unit) for figure in (before, after)]
    low, high = percentile_interval(draws[1] - draws[0])
    return Estimate(after.estimate.value - before.estimate.value, low, high, after.estimate.n)
