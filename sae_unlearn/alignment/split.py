"""Roles of entities, prompts and texts in an alignment: training or evaluation."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.entities import EntitySet, overlap
from sae_unlearn.alignment.prompts import PromptRow, TemplateGroups, prompt_rows
from sae_unlearn.alignment.short_prompts import short_prompts
from sae_unlearn.alignment.templates import questions, render
from sae_unlearn.backbone.tokens import read_corpus
from sae_unlearn.errors import AlignmentError


LEAST_ENTITIES = 8  # of each kind: fewer leave none to hold out
_LEAST_PART = 2  # of the held-out and of the fit entities: a single entity has no spread
_HELD_OUT_RETAIN = 0.1
_HELD_OUT_SHORT = 0.25


@dataclass
class EntityPlan:
    """Roles of entities, prompts and texts. Making it does not need the model.

    Reference rows are numbered, known entities first. `fit` entities choose the latents and are paired with targets;
    `held_out` ones evaluate. The same holds for templates and retain rows.
    """

    targets: EntitySet
    known: EntitySet
    unknown: EntitySet
    groups: TemplateGroups
    known_rows: list[PromptRow]
    unknown_rows: list[PromptRow]
    fit_known: list[int]
    fit_unknown: list[int]
    retain: list[list[int]]
    eval_retain: list[list[int]]
    text_rows: list[list[int]]
    short_rows: list[list[int]]

    @property
    def rows(self) -> list[PromptRow]:
        """The reference rows."""
        return [*self.known_rows, *self.unknown_rows]


def plan_entities(
    targets: EntitySet,
    known: EntitySet,
    unknown: EntitySet,
    retain: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: SAEAlignmentConfig,
) -> EntityPlan:
    """Return the split of entities and texts into training and evaluation.

    Args:
        targets, known, unknown (EntitySet): The entities.
        retain (Any): Ordinary text, or None.
        tokenizer (PreTrainedTokenizerBase): The tokenizer.
        args (SAEAlignmentConfig): The settings.

    Raises:
        AlignmentError: If there are too few entities, two sets share one, a type of the targets is missing in the
            others, or no rows are left to hold predictions on.
    """
    for name, entities in (("train_dataset", targets), ("known", known), ("unknown", unknown)):
        if not isinstance(entities, EntitySet):
            raise AlignmentError(f"{name}: expected an EntitySet, got {type(entities).__name__}.")
    if not len(targets):
        raise AlignmentError("train_dataset: expected the targets to forget, got no entities.")
    for (a, first), (b, second) in (
        (("train_dataset", targets), ("known", known)),
        (("train_dataset", targets), ("unknown", unknown)),
        (("known", known), ("unknown", unknown)),
    ):
        if shared := overlap(first, second):
            raise AlignmentError(
                f"{a}, {b}: expected no common name, got {len(shared)}, such as {shared[0]!r}. Remove them, "
                "for instance "
                f"with {b}.without({a})."
            )
    split: dict[str, tuple[EntitySet, list[int]]] = {}
    for name, entities in (("known", known), ("unknown", unknown)):
        chosen: list[Any] = []
        fit: list[int] = []
        for kind in targets.types:
            mine = entities.of_type(kind)
            limit = max(LEAST_ENTITIES, args.max_reference_entities // len(targets.types))
            mine = mine.sample(limit, seed=args.seed) if len(mine) > limit else mine
            if len(mine) < LEAST_ENTITIES:
                raise AlignmentError(
                    f"{name}: expected at least {LEAST_ENTITIES} entities of type {kind!r}, a type of the targets, got "
                    f"{len(mine)}. Add some."
                )
            numbers = list(range(len(chosen), len(chosen) + len(mine)))
            random.Random(f"{args.seed}:{name}:{kind}").shuffle(numbers)
            held_out = max(_LEAST_PART, round(len(mine) * args.held_out_fraction))
            fit += sorted(numbers[min(held_out, len(mine) - _LEAST_PART) :])
            chosen += list(mine)
        split[name] = EntitySet(chosen), fit
    forms = _question_forms(targets, args) if args.question_forms else {}
    groups = TemplateGroups(targets.types, args.templates, args.held_out_templates, forms)

    def rows(entities: EntitySet, held_out: bool) -> list[PromptRow]:
        return prompt_rows(entities, tokenizer, groups, held_out, args.chat_template)

    (known, fit_known), (unknown, fit_unknown) = split["known"], split["unknown"]
    texts = _text_rows(retain, tokenizer, args)
    held_out_known = [i for i in range(len(known)) if i not in set(fit_known)]
    apart = max(1, round(len(texts) * _HELD_OUT_RETAIN)) if len(texts) > 1 else 0
    short = _short_rows(targets, tokenizer, args)
    held_back = round(len(short) * _HELD_OUT_SHORT)
    train_retain = _mixed(texts[apart:], _question_rows(known, fit_known, tokenizer, args), short[held_back:])
    eval_retain = _mixed(texts[:apart], _question_rows(known, held_out_known, tokenizer, args), short[:held_back])
    if args.kl_weight > 0 and not train_retain:
        raise AlignmentError(
            f"kl_weight={args.kl_weight:g}: expected rows on which predictions stay, got none. "
            "Pass retain text or known "
            "entities with attributes, or set kl_weight=0."
        )
    if args.retain_budget is not None and not eval_retain:
        raise AlignmentError(
            f"retain_budget={args.retain_budget:g}: expected retain rows to measure it on, got none. "
            "Pass more retain text, "
            "or known entities with attributes."
        )
    return EntityPlan(
        targets,
        known,
        unknown,
        groups,
        [*rows(known, False), *rows(known, True)],
        [*rows(unknown, False), *rows(unknown, True)],
        fit_known,
        fit_unknown,
        train_retain,
        eval_retain,
        texts[apart:],
        short[held_back:],
    )


def _text_rows(retain: Any, tokenizer: PreTrainedTokenizerBase, args: SAEAlignmentConfig) -> list[list[int]]:
    if retain is None:
        return []
    documents = read_corpus(retain, tokenizer, "retain", args.retain_max_length, args.chat_template)
    rows = [row for document in documents for row in document.rows]
    random.Random(args.seed).shuffle(rows)
    return rows


def _question_rows(
    entities: EntitySet, numbers: Sequence[int], tokenizer: PreTrainedTokenizerBase, args: SAEAlignmentConfig
) -> list[list[int]]:
    """Questions about some entities' attributes, each up to the beginning of its answer."""
    texts = [
        render(template, entities[i]).text
        for i in numbers
        for attribute in entities[i].attributes
        for template in questions(entities[i].entity_type, attribute, args.questions)
    ]
    random.Random(args.seed).shuffle(texts)
    documents = read_corpus(texts, tokenizer, "questions", args.retain_max_length, args.chat_template)
    return [row for document in documents for row in document.rows]


def _question_forms(targets: EntitySet, args: SAEAlignmentConfig) -> dict[str, list[str]]:
    """The questions about the targets' attributes, by type, each once."""
    found: dict[str, dict[str, None]] = {}
    for entity in targets:
        for attribute in entity.attributes:
            forms = questions(entity.entity_type, attribute, args.questions)
            found.setdefault(entity.entity_type, {}).update(dict.fromkeys(forms))
    return {kind: list(forms) for kind, forms in found.items()}


def _short_rows(targets: EntitySet, tokenizer: PreTrainedTokenizerBase, args: SAEAlignmentConfig) -> list[list[int]]:
    texts = short_prompts(targets, args.short_prompts)
    random.Random(args.seed).shuffle(texts)
    documents = read_corpus(texts, tokenizer, "short prompts", args.retain_max_length, args.chat_template)
    return [row for document in documents for row in document.rows]


def _mixed(*lists: list[list[int]]) -> list[list[int]]:
    """All lists, the shorter ones repeated, so that each is drawn equally often."""
    filled = [rows for rows in lists if rows]
    longest = max(map(len, filled), default=0)
    return [rows[i % len(rows)] for i in range(longest) for rows in filled]
