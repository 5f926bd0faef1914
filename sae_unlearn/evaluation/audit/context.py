"""State of a running audit: the models, the facts, and how the facts are asked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from torch import Tensor, nn

from sae_unlearn.backbone.layers import base_model_of, text_config
from sae_unlearn.checks import check_integer
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER
from sae_unlearn.evaluation.audit.attacks.splitting import Conversations
from sae_unlearn.evaluation.audit.attacks.unnamed import naming_prompts
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.figures import check_answers, fact_figures, recall_figures
from sae_unlearn.evaluation.measurement import Measurement
from sae_unlearn.evaluation.metrics.choices import Choice, lettered
from sae_unlearn.evaluation.metrics.recall import Fact
from sae_unlearn.evaluation.report.figure import Figure, rows_digest
from sae_unlearn.options.evaluation import AuditConfig


Figures = tuple[Figure, ...]
Run = Callable[[nn.Module, Sequence[Fact], str], list[AttackPoint[Figures]]]
"""An attack on facts of one side ("forget" or "retain") with one model."""


@dataclass(kw_only=True)
class Inquiry(Measurement):
    """State of a running audit, which every attack receives: the audited model, and the facts.

    Attributes:
        forget (list of Fact): Facts to forget.
        retain (list of Fact): Other facts; may be empty.
        unnamed, names, unknown, filler, lengths, steps, layer, direction, seed: As in `audit`.
        asked (int): Number of facts asked so far.

    Raises:
        UnlearnError: If an input cannot be used by an attack that runs later: facts without answers, `unnamed` prompts
            that contain one of `names`, or `layer` out of range.
    """

    forget: list[Fact]
    retain: list[Fact]
    unnamed: list[Fact] = field(default_factory=list)
    names: Sequence[str] = ()
    unknown: list[Fact] = field(default_factory=list)
    filler: Sequence[str] = FILLER
    lengths: Sequence[int] = AuditConfig.lengths
    steps: Sequence[int] = AuditConfig.steps
    layer: int | None = None
    direction: Tensor | None = None
    seed: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("forget", "retain", "unnamed", "unknown"):
            check_answers(getattr(self, name), name)
        named = naming_prompts((fact.prompt for fact in self.unnamed), self.names)
        if named or (self.unnamed and not self.names):
            why = f"prompt {named[0][0]!r} with name {named[0][1]!r}" if named else "names=()"
            raise UnlearnError(
                f"unnamed: expected prompts that contain none of names=, got {why}. Pass names= and reword the prompt."
            )
        depth = text_config(base_model_of(self.model)).num_hidden_layers
        if self.layer is not None:
            check_integer("layer", self.layer, 0, depth - 1)

    def models(self) -> Iterator[tuple[str, AbstractContextManager[nn.Module]]]:
        """Yield the audited model, and the base as its control if there is one."""
        yield "audited", nullcontext(self.model)
        if self.has_base:
            yield "base", self.base_model()

    def sides(self) -> list[tuple[str, list[Fact]]]:
        """Return the facts by side, without an empty retain side."""
        return [("forget", self.forget), ("retain", self.retain)] if self.retain else [("forget", self.forget)]

    def ask(self, model: nn.Module, facts: Sequence[Fact], side: str = "forget", data: str = "facts") -> Figures:
        """Return the figures of facts, as `evaluate` measures them.

        Args:
            model (nn.Module): The model to ask.
            facts (sequence of Fact): The facts.
            side (str, *optional*, defaults to "forget"): "forget" or "retain".
            data (str, *optional*, defaults to "facts"): Name of the set.
        """
        self.asked += len(facts)
        return tuple(fact_figures(self.of(model), facts, side, data))

    def ask_all(self, model: nn.Module) -> Figures:
        """Return the figures of all facts, first of those to forget."""
        return tuple(figure for side, facts in self.sides() for figure in self.ask(model, facts, side))

    def with_control(self, measure: Callable[[nn.Module], Figures]) -> tuple[Figures, Figures]:
        """Return the figures of a measure with the audited model and with its control.

        Without a control, its figures are ().
        """
        found: dict[str, Figures] = {"audited": (), "base": ()}
        for who, place in self.models():
            with place as model:
                found[who] = measure(model)
        return found["audited"], found["base"]

    def talked(self, talks: Conversations, side: str) -> Figures:
        """Return the figures of facts that were asked in conversations."""
        self.asked += len(talks.found)
        rows = rows_digest([one.fact.prompt for one in talks.found])
        return tuple(recall_figures(talks.found, talks.fired, side, "facts", rows, self.notes))

    def rows(self, attack: str, run: Run) -> list[AuditRow]:
        """Run an attack on both sides with the audited model and its control, and return a row for each point."""
        found: dict[tuple[str, float], dict[str, Figures]] = {}
        for side, facts in self.sides():
            for who, place in self.models():
                with place as model:
                    for point in run(model, facts, side):
                        both = found.setdefault((point.variant, point.strength), {"audited": (), "base": ()})
                        both[who] += point.found
        return [AuditRow(attack, *point, both["audited"], both["base"]) for point, both in found.items()]


def as_facts(rows: Any, name: str) -> list[Fact]:
    """Return facts and choices, or a mapping of names to them, as facts.

    A choice whose options are shown becomes a question for the letter of the right option, which chance also answers.
    Any other choice becomes a question for the text of the right option.

    Args:
        rows (list of Fact or Choice, or mapping): The rows.
        name (str): Name of the argument, for errors.

    Raises:
        UnlearnError: If `rows` is empty or holds anything else.
    """
    if isinstance(rows, dict):
        return [fact for key, part in rows.items() for fact in as_facts(part, f"{name}[{key!r}]")]
    if isinstance(rows, (str, bytes)) or not hasattr(rows, "__iter__"):
        raise UnlearnError(f"{name}: expected a list of Fact or Choice, got {type(rows).__name__}.")
    found = [_as_fact(row, name) for row in rows]
    if not found:
        raise UnlearnError(f"{name}=[]: expected at least one Fact or Choice.")
    return found


def _as_fact(row: Any, name: str) -> Fact:
    if isinstance(row, Fact):
        return row
    if not isinstance(row, Choice):
        raise UnlearnError(f"{name}: expected Fact or Choice, got {type(row).__name__}. Pass texts as neighbors=.")
    if row.shown:
        return Fact(f"{lettered(row)}\nAnswer:", (ascii_uppercase[row.right],), row.subject)
    return Fact(f"{row.question}\nAnswer:", (row.options[row.right],), row.subject)
