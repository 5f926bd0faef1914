"""Rows of an alignment that the closed form holds in place, and rows on which its damage is measured."""

import random

from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.closed_form.covariance import StayRow
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.prompts import locate_entity
from sae_unlearn.alignment.split import EntityPlan
from sae_unlearn.alignment.templates import entity_templates, render


_ENTITIES = 120  # known, and unknown
_PROMPTS_PER_ENTITY = 3
_TEXT_TOKENS = 6000
_DAMAGE_ROWS = 72


def stay_rows(
    plan: EntityPlan, tokenizer: PreTrainedTokenizerBase, seed: int, chat_template: bool = False
) -> list[StayRow]:
    """Return rows to keep: other entities and attributes' values in up to three prompts, and texts.

    Entities and texts that judge are not among them. Values are those of the targets and of the known entities: what is
    known of France should stay when Lyon is forgotten. A row's first token does not count: in many models its state is
    the same everywhere, and larger than any other.
    """
    draw = random.Random(seed)
    rows = []
    for entities, fit in ((plan.known, plan.fit_known), (plan.unknown, plan.fit_unknown)):
        for number in sorted(draw.sample(list(fit), min(len(fit), _ENTITIES))):
            rows += _of_entity(plan, entities, number, tokenizer, draw, chat_template)
    rows += _of_values(plan, tokenizer, draw, chat_template)
    tokens = 0
    for row in plan.text_rows:
        if tokens >= _TEXT_TOKENS:
            break
        tokens += len(row)
        rows.append(StayRow(row, _groups(len(row), "text")))
    rows += [StayRow(row, _groups(len(row), "short")) for row in plan.short_rows]
    return rows


def damage_rows(plan: EntityPlan, positions: int | None, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return held-out retain rows of all kinds in turn, each once, with the places that count.

    These are a row's last token and others at random.
    """
    draw = random.Random(seed)
    rows = [list(row) for row in dict.fromkeys(map(tuple, plan.eval_retain)) if len(row) > 1][:_DAMAGE_ROWS]
    found = []
    for row in rows:
        inner = list(range(1, len(row) - 1))
        few = inner if positions is None else draw.sample(inner, min(len(inner), positions - 1))
        found.append((row, [*sorted(few), len(row) - 1]))
    return found


def _of_entity(
    plan: EntityPlan,
    entities: EntitySet,
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    draw: random.Random,
    chat_template: bool,
) -> list[StayRow]:
    entity = entities[number]
    groups = plan.groups.of_type(entity.entity_type)
    rows = []
    for group in draw.sample(groups, min(len(groups), _PROMPTS_PER_ENTITY)):
        found = locate_entity(tokenizer, render(plan.groups.groups[group][1], entity), chat_template, cut=False)
        of_token = _groups(len(found.input_ids), "rest")
        of_token[found.position] = "name"
        rows.append(StayRow(found.input_ids, of_token))
    return rows


def _of_values(
    plan: EntityPlan, tokenizer: PreTrainedTokenizerBase, draw: random.Random, chat_template: bool
) -> list[StayRow]:
    """Values of attributes, as entities of a type named as the attribute is."""
    given = [item for entity in [*plan.known, *plan.targets] for item in entity.attributes.items()]
    found = sorted({(attribute, value) for attribute, values in given for value in values})
    rows = []
    for attribute, value in sorted(draw.sample(found, min(len(found), _ENTITIES))):
        entity = Entity(value, attribute)
        for template in entity_templates(attribute)[:_PROMPTS_PER_ENTITY]:
            tokens = locate_entity(tokenizer, render(template, entity), chat_template, cut=False)
            of_token = _groups(len(tokens.input_ids), "rest")
            of_token[tokens.position] = "value"
            rows.append(StayRow(tokens.input_ids, of_token))
    return rows


def _groups(length: int, group: str) -> list[str]:
    return ["", *[group] * (length - 1)]
