"""Which entities a model knows, found by asking it.

After Ferrando et al., "Do I Know This Entity?" (arXiv 2411.14257): each attribute is asked for and answered ten times,
at temperature 1, and is right if at least three answers match. An entity is known if at least two attributes are right,
unknown if none is, and left out otherwise.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.entities import Entity, EntitySet, as_entity_set
from sae_unlearn.alignment.labelling.answer_log import AnswerLog, Asked, Question
from sae_unlearn.alignment.labelling.answer_matching import MATCHES, AnswerMatcher
from sae_unlearn.alignment.labelling.result import LabelledEntities
from sae_unlearn.alignment.labelling.sampling import sample_continuations
from sae_unlearn.alignment.prompts import in_chat
from sae_unlearn.alignment.templates import Prompt, Questions, render
from sae_unlearn.alignment.templates import questions as questions_for
from sae_unlearn.backbone.distributed import gathered, process_count, process_index
from sae_unlearn.backbone.identity import model_key
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.backbone.tokens import prompt_ids
from sae_unlearn.errors import AlignmentError


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabellingRule:
    """From matching answers to known and unknown.

    A question is right if at least `min_matches` of its answers match, and wrong if at most `max_wrong_matches` do. An
    attribute is right if all of its questions are, and wrong if all are. An entity is known if at least `min_known` of
    its attributes are right, unknown if all but at most `max_unknown` are wrong. With one question an attribute and
    `max_wrong_matches = min_matches - 1` that is the published rule.

    Raises:
        AlignmentError: thresholds by which an entity could be both or neither, whatever the answers.
    """

    samples: int = 10
    min_matches: int = 3
    max_wrong_matches: int = 2
    min_known: int = 2
    max_unknown: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.samples, int) or self.samples < 1:
            raise AlignmentError(f"samples={self.samples!r}; expected an integer of at least 1.")
        if not 1 <= self.min_matches <= self.samples:
            raise AlignmentError(
                f"min_matches={self.min_matches} of samples={self.samples} answers; expected 1 to {self.samples} "
                "(with samples=1 pass min_matches=1)."
            )
        if not 0 <= self.max_wrong_matches < self.min_matches:
            raise AlignmentError(
                f"max_wrong_matches={self.max_wrong_matches}; expected 0 to {self.min_matches - 1}, below min_matches."
            )
        if not 0 <= self.max_unknown < self.min_known:
            raise AlignmentError(
                f"max_unknown={self.max_unknown} and min_known={self.min_known}; expected 0 <= max_unknown < min_known."
            )

    def label(self, matches: dict[str, list[int]]) -> str:
        """ "known", "unknown" or "dropped", of one entity.

        Args:
            matches: attribute -> how many answers match, for each of its questions.
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
) -> LabelledEntities:
    """Ask the model for every attribute of every candidate, and divide them into known, unknown and dropped.

    The same model, settings and seed give the same answers, whatever the candidates' order, the batch size, or how
    often the run was cut: the random numbers hang on the seed and the question's text. Only the rounding of logits,
    which padding and batch size change a little, can turn a draw that lies on an edge. In a process group (as with
    `accelerate launch`) every process calls it with the same arguments, asks its share of the questions, and gets all
    answers; the first one writes the cache.

    Args:
        model: any causal language model. A `PeftModel` is asked with its adapters as they are: to label for a training
            run, ask the base (`with model.disable_adapter(): ...`).
        candidates: entities with attributes.
        questions: type -> attribute -> one template or several, where the library's should not be taken. Every one is
            asked, and an attribute is right, or wrong, only if all are.
        samples: answers to each question.
        temperature: of the sampling; 0, with `samples=1, min_matches=1`, takes the most probable answer.
        min_matches: matching answers from which on a question is right.
        max_wrong_matches: matching answers up to which it is wrong; default `min_matches - 1`. Between the two it is
            neither, and the entity neither known nor unknown by it. 0 suits attributes with few values (countries,
            years), where guesses match now and then.
        min_known: right attributes from which on an entity is known; None is 2, or 1, with a warning, where no
            candidate has more than one.
        max_unknown: attributes that are not wrong up to which it is unknown.
        max_new_tokens: the longest answer.
        match: "begins" or "contains", see `AnswerMatcher`.
        ignore_accents: let "Malmo" match "Malmö".
        batch_size: questions at once; the model runs `samples` times as many rows.
        chat_template: ask as a user's turn in the tokenizer's chat template; `match="contains"` suits those answers.
        seed: of the sampling.
        cache: a JSON-lines file in which answers are kept as they come. A later call with the same model and settings
            takes them from there; questions that have changed, or their accepted answers, are asked anew.
        progress: show a bar.

    Raises:
        AlignmentError: candidates with too few attributes, thresholds that make no sense, a cache of another model or
            other settings, or logits that are not finite.
    """
    wrong = min_matches - 1 if max_wrong_matches is None else max_wrong_matches
    candidates = as_entity_set(candidates)
    if min_known is None:
        min_known = _default_min_known(candidates)
    rule = LabellingRule(samples, min_matches, wrong, min_known, max_unknown)
    if temperature < 0 or (temperature == 0 and samples > 1):
        raise AlignmentError(
            f"temperature={temperature} with samples={samples}: at 0 all samples are the same (pass samples=1, "
            "min_matches=1), and below 0 there is no sampling."
        )
    if match not in MATCHES or max_new_tokens < 1 or batch_size < 1:
        raise AlignmentError(
            f"match={match!r}, max_new_tokens={max_new_tokens}, batch_size={batch_size}; expected one of {MATCHES} and "
            "numbers of at least 1."
        )
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
    return LabelledEntities.divide(candidates, answers, rule.label, asdict(rule) | about | asking)


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
    """Ask what the log does not have yet, longest questions first, so that too little memory shows at once."""
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
            if batch:  # the last round may leave a process without one
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
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8]) >> 1


def _default_min_known(candidates: EntitySet) -> int:
    """Of the rule, or 1 where the rule's could never be met."""
    if {len(entity.attributes) for entity in candidates} != {1}:
        return LabellingRule.min_known
    logger.warning("The candidates have one attribute each: who knows it knows the entity (min_known=1).")
    return 1


def _check_attributes(candidates: EntitySet, min_known: int) -> None:
    few = [entity for entity in candidates if len(entity.attributes) < min_known]
    if not few:
        return
    first, least = few[0], min(len(entity.attributes) for entity in few)
    mend = f"pass min_known={least}, or leave them out" if least else "leave those without any out"
    raise AlignmentError(
        f"{len(few)} of {len(candidates)} candidates have fewer than min_known={min_known} attributes, so they could "
        f"never be known (first: {first.entity!r} with {sorted(first.attributes)}); {mend}."
    )
