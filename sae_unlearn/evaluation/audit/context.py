"""What every attack of an audit needs: the models, the facts, and how they are asked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import base_model_of, text_config
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER
from sae_unlearn.evaluation.audit.attacks.entity_free import naming_prompts
from sae_unlearn.evaluation.audit.attacks.splitting import Conversations
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.base_model import has_adapters, without_adapters
from sae_unlearn.evaluation.figures import check_answers, fact_figures, recall_figures
from sae_unlearn.evaluation.metrics.choices import Choice, lettered
from sae_unlearn.evaluation.metrics.recall import Fact
from sae_unlearn.evaluation.report.figure import Figure, fingerprint
from sae_unlearn.options.evaluation import AuditConfig, MeasurementConfig


Figures = tuple[Figure, ...]
Run = Callable[[nn.Module, Sequence[Fact], str], list[AttackPoint[Figures]]]
"""An attack on facts of one side ("forget" or "retain") with one model."""


@dataclass
class Inquiry:
    """An audit while it runs.

    Attributes:
        model: the audited model.
        base: the model without its adapters, where it is another one.
        forget, retain: facts; `retain` may be empty.
        unnamed, names, unknown, filler, lengths, steps, layer, direction, seed: see `audit`.
        notes: what a reader has to know; attacks add to it.
        asked: how many facts have been asked so far.

    Raises:
        ValueError: what an attack would find only after others have run: facts without answers, `unnamed` prompts that
            name one of `names`, `layer` out of range.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    forget: list[Fact]
    retain: list[Fact]
    settings: MeasurementConfig
    base: nn.Module | None = None
    unnamed: list[Fact] = field(default_factory=list)
    names: Sequence[str] = ()
    unknown: list[Fact] = field(default_factory=list)
    filler: Sequence[str] = FILLER
    lengths: Sequence[int] = AuditConfig.lengths
    steps: Sequence[int] = AuditConfig.steps
    layer: int | None = None
    direction: Tensor | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "unnamed", "unknown"):
            check_answers(getattr(self, name), name)
        named = naming_prompts((fact.prompt for fact in self.unnamed), self.names)
        if named or (self.unnamed and not self.names):
            why = f"{named[0][0]!r} names {named[0][1]!r}" if named else "there are no names="
            raise ValueError(f"unnamed= is for prompts that name nothing of the topic, but {why}.")
        depth = text_config(base_model_of(self.model)).num_hidden_layers
        if self.layer is not None and not 0 <= self.layer < depth:
            raise ValueError(f"layer={self.layer}, but {type(self.model).__name__} has layers 0 to {depth - 1}.")

    def models(self) -> Iterator[tuple[str, AbstractContextManager[nn.Module]]]:
        """The audited model, and its control where there is one."""
        yield "audited", nullcontext(self.model)
        if self.base is not None:
            yield "base", nullcontext(self.base)
        elif has_adapters(self.model):
            yield "base", without_adapters(self.model)

    def sides(self) -> list[tuple[str, list[Fact]]]:
        """The facts to forget, and those to keep where there are some."""
        return [("forget", self.forget), ("retain", self.retain)] if self.retain else [("forget", self.forget)]

    def ask(self, model: nn.Module, facts: Sequence[Fact], side: str = "forget", data: str = "facts") -> Figures:
        """The figures of facts, as `evaluate` tells them."""
        self.asked += len(facts)
        return tuple(fact_figures(model, self.tokenizer, facts, side, data, self.quiet, self.notes))

    def ask_all(self, model: nn.Module) -> Figures:
        """The figures of all facts, those to forget first."""
        return tuple(figure for side, facts in self.sides() for figure in self.ask(model, facts, side))

    def with_control(self, measure: Callable[[nn.Module], Figures]) -> tuple[Figures, Figures]:
        """What a measure finds with the audited model, and with its control; nothing where there is none."""
        found: dict[str, Figures] = {"audited": (), "base": ()}
        for who, place in self.models():
            with place as model:
                found[who] = measure(model)
        return found["audited"], found["base"]

    def talked(self, talks: Conversations, side: str) -> Figures:
        """The figures of facts that were asked in conversations."""
        self.asked += len(talks.found)
        rows = fingerprint([one.fact.prompt for one in talks.found])
        return tuple(recall_figures(talks.found, talks.fired, side, "facts", rows, self.notes))

    def rows(self, attack: str, run: Run) -> list[AuditRow]:
        """An attack on both sides with the audited model and its control: a row for each point."""
        found: dict[tuple[str, float], dict[str, Figures]] = {}
        for side, facts in self.sides():
            for who, place in self.models():
                with place as model:
                    for point in run(model, facts, side):
                        both = found.setdefault((point.variant, point.strength), {"audited": (), "base": ()})
                        both[who] += point.found
        return [AuditRow(attack, *point, both["audited"], both["base"]) for point, both in found.items()]

    @property
    def quiet(self) -> MeasurementConfig:
        """The settings for what is asked many times over."""
        return replace(self.settings, progress=False)


def as_facts(rows: Any, name: str) -> list[Fact]:
    """Facts and choices (or a mapping of names to them) as facts. A choice whose options are shown asks for the letter
    of the right one, of which chance gives its share; any other asks for the right option's text.

    Raises:
        ValueError: something else, or nothing.
    """
    if isinstance(rows, dict):
        return [fact for key, part in rows.items() for fact in as_facts(part, f"{name}[{key!r}]")]
    if isinstance(rows, (str, bytes)) or not hasattr(rows, "__iter__"):
        raise ValueError(f"{name} is a {type(rows).__name__}; pass a list of Fact or Choice.")
    found = [_as_fact(row, name) for row in rows]
    if not found:
        raise ValueError(f"{name} is empty; pass at least one Fact or Choice.")
    return found


def _as_fact(row: Any, name: str) -> Fact:
    if isinstance(row, Fact):
        return row
    if not isinstance(row, Choice):
        raise ValueError(
            f"{name} holds a {type(row).__name__}; attacks ask questions, so pass Fact or Choice (texts: neighbours=)."
        )
    if row.shown:
        return Fact(f"{lettered(row)}\nAnswer:", (ascii_uppercase[row.right],), row.subject)
    return Fact(f"{row.question}\nAnswer:", (row.options[row.right],), row.subject)
