"""Registry of the attacks of an audit, each with its controls."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType, ModuleType

import torch
from torch import nn

from sae_unlearn.backbone.layers import base_model_of, find_decoder_layers, max_positions, text_config
from sae_unlearn.backbone.tokens import turn_prompt
from sae_unlearn.evaluation.audit.attacks import (
    dilution,
    direction,
    relearning,
    removal,
    rephrasing,
    rounding,
    spelling,
    splitting,
    unnamed,
    wrappers,
)
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint
from sae_unlearn.evaluation.audit.attacks.merged import base_copy
from sae_unlearn.evaluation.audit.context import Figures, Inquiry
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.base_model import has_adapters
from sae_unlearn.evaluation.metrics.recall import Fact, tokens_needed
from sae_unlearn.guardrail import guard_layers


BLACK_BOX = ("dilution", "splitting", "rephrasing", "spelling", "wrappers")
"""Attacks that need only the questions, and that ask all of them at every point."""

FROM_ZERO = ("direction", "relearning")
"""Attacks whose first point is the unchanged model on the rows that they measure."""


def dilution_rows(it: Inquiry) -> list[AuditRow]:
    limit = max_positions(it.model)
    facts = [fact for _, part in it.sides() for fact in part]
    new = it.settings.max_new_tokens or tokens_needed(it.tokenizer, facts)
    fitting = []
    for words in it.lengths:
        prompts = [dilution.diluted(f.prompt, words, "after", it.filler, it.seed, i) for i, f in enumerate(facts)]
        if it.settings.chat_template:
            prompts = [turn_prompt(it.tokenizer, prompt) for prompt in prompts]
        longest = max(len(it.tokenizer(prompt)["input_ids"]) for prompt in prompts) + new
        if limit is None or longest <= limit:
            fitting.append(words)
        else:
            it.notes.append(
                f"dilution: {words} words make {longest} tokens, above the model's limit of {limit}; skipped."
            )
    return it.rows(
        "dilution",
        lambda model, facts, side: dilution.dilution_attack(
            model, facts, lambda m, asked: it.ask(m, asked, side), fitting, filler=it.filler, seed=it.seed
        ),
    )


def splitting_rows(it: Inquiry) -> list[AuditRow]:
    def run(model: nn.Module, facts: Sequence[Fact], side: str) -> list[AttackPoint[Figures]]:
        new = it.settings.max_new_tokens or tokens_needed(it.tokenizer, facts)
        points = splitting.splitting_attack(
            model,
            it.tokenizer,
            facts,
            filler=it.filler,
            max_new_tokens=new,
            chat_template=it.settings.chat_template,
            seed=it.seed,
        )
        return [AttackPoint(point.strength, it.talked(point.found, side), point.variant) for point in points]

    return it.rows("splitting", run)


def rephrasing_rows(it: Inquiry) -> list[AuditRow]:
    return _template_rows(it, "rephrasing", rephrasing.TEMPLATES)


def _template_rows(it: Inquiry, attack: str, templates: Mapping[str, str]) -> list[AuditRow]:
    def run(model: nn.Module, facts: Sequence[Fact], side: str) -> list[AttackPoint[Figures]]:
        return rephrasing.rephrasing_attack(model, facts, lambda m, asked: it.ask(m, asked, side), templates)

    return it.rows(attack, run)


def spelling_rows(it: Inquiry) -> list[AuditRow]:
    return it.rows(
        "spelling",
        lambda model, facts, side: spelling.spelling_attack(
            model, facts, lambda m, asked: it.ask(m, asked, side), seed=it.seed
        ),
    )


def wrapper_rows(it: Inquiry) -> list[AuditRow]:
    return _template_rows(it, "wrappers", wrappers.WRAPPERS)


def unnamed_rows(it: Inquiry) -> list[AuditRow]:
    if not it.unnamed:
        it.notes.append("unnamed: skipped. Pass unnamed= (facts whose prompts do not name the topic) and names=.")
        return []
    found = it.with_control(lambda model: it.ask(model, it.unnamed, data="facts without names"))
    return [AuditRow("unnamed", "", 1.0, *found)]


def removal_rows(it: Inquiry) -> list[AuditRow]:
    if not has_adapters(it.model):
        it.notes.append("removal: skipped. The model has no active adapter.")
        return []
    [point] = removal.removal_attack(it.model, it.ask_all)
    return [AuditRow("removal", "adapters off", point.strength, point.found)]


def direction_rows(it: Inquiry) -> list[AuditRow]:
    if not it.has_base:
        it.notes.append("direction: skipped. It compares with the base model: attach an adapter, or pass base=.")
        return []
    halves = _halves(it, "direction")
    if halves is None:
        return []
    seen, measured = halves
    prompts = [fact.prompt for fact in seen]
    if it.settings.chat_template:
        prompts = [turn_prompt(it.tokenizer, prompt) for prompt in prompts]
    bare = base_model_of(it.model)
    guards = [i for i, layer in enumerate(find_decoder_layers(bare).layers) if guard_layers(layer)]
    layer = it.layer if it.layer is not None else (guards or [text_config(bare).num_hidden_layers // 2])[-1]
    found = it.direction
    if found is None:
        found = direction.displacement(it.model, it.tokenizer, prompts, layer, it.base, it.settings.batch_size)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(it.seed))
    noise *= found.float().norm().cpu() / noise.norm()
    rows = []
    for vector, control in ((found, False), (noise, True)):
        points = direction.direction_attack(it.model, layer, vector, lambda model: it.ask(model, measured))
        name = f"after layer {layer}" + (", random direction" if control else "")
        rows += [AuditRow("direction", name, p.strength, p.found, control=control) for p in points]
    return rows


def _examined(it: Inquiry, exam: Sequence[Fact], student: nn.Module) -> Figures:
    return it.ask(student, exam)


def relearning_rows(it: Inquiry) -> list[AuditRow]:
    halves = _halves(it, "relearning")
    if halves is None:
        return []
    taught, measured = halves
    lessons = [("", it.model, taught, measured, False)]
    if it.retain:
        lessons.append((", taught other things", it.model, it.retain[: len(taught)], measured, True))
    if it.unknown:
        lesson, exam = relearning.split_subjects(numbered(it.unknown), seed=it.seed)
        plain = base_copy(it.model) if it.base is None else it.base
        lessons.append((", base on unknown facts", plain, lesson, exam, True))
    else:
        it.notes.append("relearning: without the control of unknown facts. Pass unknown= (facts that the base misses).")
    rows = []
    for full in (False, True):
        for name, model, lesson, exam, control in lessons:
            on_base, variant = name.startswith(", base"), ("full" if full else "LoRA") + name
            points = relearning.relearning_attack(
                model,
                it.tokenizer,
                _as_asked(it, lesson),
                partial(_examined, it, exam),
                sorted({0, *it.steps}),
                seed=it.seed,
                progress=it.settings.bar("relearning", variant),
                full=full,
            )
            for point in points:
                audited, base = ((), point.found) if on_base else (point.found, ())
                rows.append(AuditRow("relearning", variant, point.strength, audited, base, control=control))
    return rows


def rounding_rows(it: Inquiry) -> list[AuditRow]:
    points = rounding.rounding_attack(it.model, it.ask_all)
    base: dict[float, Figures] = {}
    if it.has_base:
        plain = base_copy(it.model) if it.base is None else it.base
        base = {point.strength: point.found for point in rounding.rounding_attack(plain, it.ask_all)}
    return [AuditRow("rounding", "", p.strength, p.found, base.get(p.strength, ())) for p in points]


ATTACKS: Mapping[str, tuple[ModuleType, Callable[[Inquiry], list[AuditRow]]]] = MappingProxyType(
    {
        "dilution": (dilution, dilution_rows),
        "splitting": (splitting, splitting_rows),
        "rephrasing": (rephrasing, rephrasing_rows),
        "spelling": (spelling, spelling_rows),
        "wrappers": (wrappers, wrapper_rows),
        "unnamed": (unnamed, unnamed_rows),
        "removal": (removal, removal_rows),
        "direction": (direction, direction_rows),
        "relearning": (relearning, relearning_rows),
        "rounding": (rounding, rounding_rows),
    }
)
"""By name: the attack's module, whose docstring states the budget, and the function for its rows."""


def budget(attack: str) -> str:
    """Return what an attacker may see and do in an attack, as the docstring of its module states it."""
    text = inspect.getdoc(ATTACKS[attack][0]) or ""
    found = next((part for part in text.split("\n\n") if part.startswith("Budget:")), "Budget: not stated.")
    return " ".join(found.removeprefix("Budget:").split())


def numbered(facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts with a subject of its own for each fact without a subject."""
    return [fact if fact.subject else replace(fact, subject=f"fact {i}") for i, fact in enumerate(facts)]


def _halves(it: Inquiry, attack: str) -> tuple[list[Fact], list[Fact]] | None:
    """Facts to attack with and facts to measure, of different subjects; None for a single subject."""
    facts = numbered(it.forget)
    if len({fact.subject for fact in facts}) < 2:
        it.notes.append(
            f"{attack}: skipped. All facts are of one subject, and a subject cannot be both used and measured."
        )
        return None
    return relearning.split_subjects(facts, seed=it.seed)


def _as_asked(it: Inquiry, facts: Sequence[Fact]) -> list[Fact]:
    """The facts with the prompts as the model receives them."""
    if not it.settings.chat_template:
        return list(facts)
    return [replace(fact, prompt=turn_prompt(it.tokenizer, fact.prompt)) for fact in facts]
