"""Labeling of entities as known or unknown, by asking the model.

After Ferrando et al., "Do I Know This Entity?" (arXiv 2411.14257): each attribute is asked for and answered ten times,
at temperature 1, and is right if at least three answers match. An entity is known if at least two attributes are right,
unknown if none is, and dropped otherwise.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.entities import EntitySet, as_entity_set
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling.answer_log import AnswerLog, Asked, Question
from sae_unlearn.alignment.labeling.result import LabeledEntities
from sae_unlearn.alignment.labeling.sampling import sample_continuations
from sae_unlearn.alignment.prompts import in_chat
from sae_unlearn.alignment.templates import Prompt, Questions, render
from sae_unlearn.alignment.templates import questions as questions_for
from sae_unlearn.answer_matching import MATCHES, AnswerMatcher
from sae_unlearn.backbone.distributed import gathered, process_count, process_index
from sae_unlearn.backbone.identity import model_key
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.backbone.tokens import prompt_ids
from sae_unlearn.checks import check_choice, check_integer, check_number
from sae_unlearn.errors import AlignmentError
from sae_unlearn.files.digest import sha256


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelingRule:
    """Thresholds that turn matching answers into known and unknown.

    A question is right if at least `min_matches` of its answers match, and wrong if at most `max_wrong_matches` do. An
    attribute is right if all of its questions are, and wrong if all are. An entity is known if at least `min_known` of
    its attributes are right, unknown if all except at most `max_unknown` are wrong. With one question per attribute and
    `max_wrong_matches = min_matches - 1` that is the published rule.

    Raises:
        AlignmentError: If an entity could be both or neither, whatever the answers.
    """

    samples: int = 10
    min_matches: int = 3
    max_wrong_matches: int = 2
    min_known: int = 2
    max_unknown: int = 0

    def __post_init__(self) -> None:
        check_integer("samples", self.samples, 1, error=AlignmentError)
        fix = "With samples=1 pass min_matches=1." if self.samples == 1 else ""
        check_integer("min_matches", self.min_matches, 1, self.samples, AlignmentError, fix)
        check_integer("max_wrong_matches", self.max_wrong_matches, 0, self.min_matches - 1, AlignmentError)
        check_integer("min_known", self.min_known, 1, error=AlignmentError)
        check_integer("max_unknown", self.max_unknown, 0, self.min_known - 1, AlignmentError)

    def label(self, matches: dict[str, list[int]]) -> str:
        """Return "known", "unknown" or "dropped" for one entity.

        Args:
            matches (dict): Attribute -> number of matching answers of each of its questions.
        """
        right = sum(min(counts) >= self.min_matches for counts in matches.values())
        wrong = sum(max(counts) <= self.max_wrong_matches for counts in matches.values())
        if right >= self.min_known:
            return "known"
        return "unknown" if len(matches) - wrong <= self.max_unknown else "dropped"


def label_entities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    candidates: EntitySet,
    *,
    questions: Questions | None = None,
    samples: int = 10,
    temperature: float = 1.0,
    min_matches: int = 3,
    max_wrong_matches: int | None = None,
    min_known: int | None = None,
    max_unknown: int = 0,
    max_new_tokens: int = 8,
    match: str = "begins",
    ignore_accents: bool = False,
    batch_size: int = 32,
    chat_template: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> LabeledEntities:
    """Ask the model for every attribute of every candidate, and label each candidate.

    The same model, settings and seed give the same answers, whatever the candidates' order, the batch size, or the
    number of interruptions: the random numbers depend only on the seed and the question's text. Rounding of logits,
    which
        padding and
    batch size change slightly, can change a draw that is at the edge. In a process group (as with `accelerate launch`)
    every process calls it with the same arguments, asks its share of the questions, and gets all answers; the first
    process writes the cache.

    Args:
        model (nn.Module): Any causal language model. A `PeftModel` is asked with its adapters as they are: to label for
            a training run, ask the base (`with model.disable_adapter(): ...`).
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        candidates (EntitySet): Entities with attributes.
        questions (mapping, *optional*): Type -> attribute -> one template or several, which replace the library's.
            Every template is asked, and an attribute is right, or wrong, only if all are.
        samples (int, *optional*, defaults to 10): Answers to each question.
        temperature (float, *optional*, defaults to 1.0): Of the sampling. 0, with `samples=1, min_matches=1`, takes the
            most probable answer.
        min_matches (int, *optional*, defaults to 3): Smallest number of matching answers of a right question.
        max_wrong_matches (int, *optional*, defaults to min_matches - 1): Largest number of matching answers of a wrong
            question. Between the two it is neither, and does not count for the entity. 0 suits attributes with few
            values (countries, years), which guesses match at times.
        min_known (int, *optional*): Smallest number of right attributes of a known entity. None is 2, or 1 with a
            warning if no candidate has more than one.
        max_unknown (int, *optional*, defaults to 0): Largest number of attributes of an unknown entity that are not
            wrong.
        max_new_tokens (int, *optional*, defaults to 8): Tokens of an answer.
        match (str, *optional*, defaults to "begins"): "begins" or "contains", see `AnswerMatcher`.
        ignore_accents (bool, *optional*, defaults to False): Let "Malmo" match "Malmö".
        batch_size (int, *optional*, defaults to 32): Questions at once; the model runs `samples` times as many rows.
        chat_template (bool, *optional*, defaults to False): Ask as a user turn in the tokenizer's chat template;
            `match="contains"` suits those answers.
        seed (int, *optional*, defaults to 0): Seed of the sampling.
        cache (str or Path, *optional*): A JSON-lines file to which answers are written as they come. A later call with
            the same model and settings reads them. Changed questions, or changed accepted answers, are asked again.
        progress (bool, *optional*, defaults to True): Show a progress bar.

    Returns:
        `LabeledEntities`: The known, unknown and dropped entities, and the answers.

    Raises:
        AlignmentError: If candidates have too few attributes, the thresholds contradict each other, the cache is of
            another model or other settings, or the logits are not finite.
    """
    wrong = min_matches - 1 if max_wrong_matches is None else max_wrong_matches
    candidates = as_entity_set(candidates)
    if min_known is None:
        min_known = _default_min_known(candidates)
    rule = LabelingRule(samples, min_matches, wrong, min_known, max_unknown)
    check_number("temperature", temperature, 0, error=AlignmentError)
    if temperature == 0 and samples > 1:
        raise AlignmentError(
            f"temperature=0, samples={samples}: expected a temperature above 0 for several samples. At 0 pass "
            "samples=1, min_matches=1."
        )
    check_choice("match", match, MATCHES, AlignmentError)
    for name, number in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        check_integer(name, number, 1, error=AlignmentError)
    _check_attributes(candidates, min_known)
    asking = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "match": match,
        "ignore_accents": ignore_accents,
        "chat_template": chat_template,
        "seed": seed,
    }
    about = {"model": getattr(model, "name_or_path", "") or type(model).__name__, "weights": model_key(model)}
    about["vocabulary"] = len(tokenizer)
    log = AnswerLog(cache if process_index() == 0 else None, about | asking)
    log.know(gathered(log.answers)[0])
    wanted = [
        _Question(entity, attribute, render(template, entity))
        for entity in candidates
        for attribute in entity.attributes
        for template in questions_for(entity.entity_type, attribute, questions)
    ]
    _ask(model, tokenizer, wanted, log, asking, batch_size, progress)
    answers = [log[question.key] for question in wanted]
    return LabeledEntities.divide(candidates, answers, rule.label, asdict(rule) | about | asking)


@dataclass(frozen=True)
class _Question:
    entity: Entity
    attribute: str
    prompt: Prompt

    @property
    def key(self) -> Question:
        entity = self.entity
        return (entity.entity, entity.entity_type, self.attribute, self.prompt.text, entity.attributes[self.attribute])

    def answered(self, texts: Iterable[str], matches: int) -> Asked:
        accepted = self.entity.attributes[self.attribute]
        kind = self.entity.entity_type
        return Asked(self.entity.entity, kind, self.attribute, self.prompt.text, accepted, tuple(texts), matches)


def _settled(matchers: Sequence[AnswerMatcher], number: int, text: str) -> bool:
    return matchers[number].settled(text)


def _ask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Sequence[_Question],
    log: AnswerLog,
    asking: dict[str, Any],
    batch_size: int,
    progress: bool,
) -> None:
    """Ask the questions that are not in the log, longest first, so that too little memory shows at once."""
    missing = [question for question in wanted if question.key not in log]
    rows = [_row(tokenizer, question.prompt, asking["chat_template"]) for question in missing]
    order = sorted(range(len(missing)), key=lambda i: -len(rows[i]))
    hidden = not progress or process_index() > 0
    with (
        tqdm(
            total=len(wanted), initial=len(wanted) - len(missing), desc="Asking", unit="question", disable=hidden
        ) as bar,
        evaluation_mode(model),
    ):
        shared = batch_size * process_count()
        for start in range(0, len(order), shared):
            batch = order[start : start + shared][process_index() * batch_size :][:batch_size]
            matchers = [
                AnswerMatcher(
                    missing[i].entity.attributes[missing[i].attribute], asking["match"], asking["ignore_accents"]
                )
                for i in batch
            ]
            continuations: Sequence[Sequence[str]] = []
            if batch:  # in the last round a process may have none
                continuations = sample_continuations(
                    model,
                    tokenizer,
                    [rows[i] for i in batch],
                    [_seed(asking["seed"], missing[i].prompt.text) for i in batch],
                    asking["samples"],
                    asking["temperature"],
                    asking["max_new_tokens"],
                    partial(_settled, matchers),
                )
            asked = [
                missing[i].answered(texts, sum(map(matcher.matches, texts)))
                for i, matcher, texts in zip(batch, matchers, continuations, strict=True)
            ]
            log.add(one for part in gathered(asked) for one in part)
            bar.update(min(shared, len(order) - start))


def _row(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat_template: bool) -> list[int]:
    if chat_template:
        return list(tokenizer(in_chat(tokenizer, prompt).text, add_special_tokens=False)["input_ids"])
    return prompt_ids(tokenizer, prompt.text)


def _seed(seed: int, prompt: str) -> int:
    return int(sha256(f"{seed} {prompt}".encode())[:16], 16) >> 1


def _default_min_known(candidates: EntitySet) -> int:
    """The rule's value, or 1 if no candidate could reach it."""
    if {len(entity.attributes) for entity in candidates} != {1}:
        return LabelingRule.min_known
    logger.warning(
        "min_known=1: the candidates have one attribute each, and one right attribute makes an entity known."
    )
    return 1


def _check_attributes(candidates: EntitySet, min_known: int) -> None:
    few = [entity for entity in candidates if len(entity.attributes) < min_known]
    if not few:
        return
    first, least = few[0], min(len(entity.attributes) for entity in few)
    advice = f"Pass min_known={least}, or omit them" if least else "Omit those without any"
    raise AlignmentError(
        f"min_known={min_known}: expected at least that number of attributes, got fewer in {len(few)} of "
        f"{len(candidates)} candidates (first: {first.entity!r} with {sorted(first.attributes)}). {advice}."
    )
