"""What is measured of each set of `pooled`: recall of targets and neighbors, other facts, text, states."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.alignment.data import QUESTIONS, question_facts
from benchmarks.alignment.pooled_data import ALIGNED_QUESTIONS, PooledData
from benchmarks.baselines import encode
from benchmarks.baselines.rows import Batch, scored_logits
from benchmarks.representation.probes import refit_discriminator
from benchmarks.representation.states import entity_states
from sae_unlearn.alignment import EntitySet
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.evaluation import Fact, ask
from sae_unlearn.evaluation.audit.attacks.rounding import rounding_attack


FACTS_OF_A_GROUP, EXAMINED = 80, 400
DAMAGE_CITIES, DAMAGE_TEXTS = 16, 8
UNKNOWN = 24
PARTS = 4
"""A set is asked every fourth fact, so that four sets together are asked all."""
LAYER = 9


class Row:
    """A question and its answer, or a text without one."""

    def __init__(self, prompt: str, answer: str = "") -> None:
        self.prompt, self.answer = prompt, answer


class Meter:
    """Measures a model against its base, which is measured once.

    Recall is by the first token of the country: ranked among the first tokens of all countries after the mean
    log-probability of each in the base, over cities of all parts, is subtracted ("choice"), and its probability ("p").

    Args:
        model: the bare base model.
        cache: a file that keeps which facts the base has right.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, data: PooledData, cache: Path | None = None
    ) -> None:
        self.model, self.tokenizer, self.data = model, tokenizer, data
        prefix = len(tokenizer("Country:").input_ids)
        self.first = torch.tensor([tokenizer(f"Country: {c}").input_ids[prefix] for c in data.countries])
        some = data.known_test + data.unknown_test[:40]
        self.priors = {question: self._countries(model, some, question)[0].mean(dim=0) for question in QUESTIONS}
        self._cache = cache
        rows = [Row(f.prompt, f.answers[0]) for q in (ALIGNED_QUESTIONS[0], QUESTIONS[1]) for f in self._aside(q)]
        self.damage_batches = [
            encode(tokenizer, rows),
            encode(tokenizer, [Row(text) for text in data.wiki[:DAMAGE_TEXTS]], 40),
        ]

    def _aside(self, question: str) -> list[Fact]:
        return question_facts(self.data.known_test[:DAMAGE_CITIES], question)

    @cached_property
    def facts(self) -> dict[str, list[Fact]]:
        """The facts that the base has right, by group. Read first while there is no adapter."""
        groups, cache = self.data.facts, self._cache
        kept = json.loads(cache.read_text()) if cache is not None and cache.exists() else None
        places = kept or {group: self._right(facts) for group, facts in groups.items()}
        if cache is not None and kept is None:
            cache.write_text(json.dumps(places))
        return {group: [groups[group][i] for i in few] for group, few in places.items()}

    @cached_property
    def _base(self) -> dict[str, Any]:
        return {
            "damage": [scored_logits(self.model, batch).log_softmax(dim=-1) for batch in self.damage_batches],
        }

    @torch.no_grad()
    def read_base(self) -> None:
        """Measure what is compared with the base, before there is an adapter."""
        assert self.facts
        assert self._base

    @torch.no_grad()
    def damage(self, model: nn.Module) -> float:
        """KL(base || tuned) per scored token: answers about 16 neighbors in two forms, and 8 texts."""
        return _divergence(model, self.damage_batches, self._base["damage"])

    @torch.no_grad()
    def recall(self, model: nn.Module, targets: EntitySet) -> dict[str, Any]:
        """Recall of the targets alone, which is all that differs between sets in the base."""
        found: dict[str, Any] = {}
        for form, question in zip(("seen", "unseen"), QUESTIONS, strict=True):
            found |= self.choice(model, targets, question, f"targets {form}")
        return found | {"targets said": self.said(model, targets)}

    def said(self, model: nn.Module, cities: EntitySet) -> list[int]:
        """Number of cities whose country is in five greedy tokens after the unseen form, and the number of cities."""
        answers = ask(model, self.tokenizer, question_facts(cities, QUESTIONS[1]), max_new_tokens=5)
        return [round(answers.right.value * len(cities)), len(cities)]

    @torch.no_grad()
    def measure(self, model: nn.Module, targets: EntitySet, others: EntitySet, part: int | None) -> dict[str, Any]:
        """Every figure; a share as the number of right answers and that of all.

        Args:
            model: to measure.
            targets: of this set.
            others: targets of another set, which are known neighbors here.
            part: which quarter of the other facts is asked; None for all of them.
        """
        data, found = self.data, self.recall(model, targets)
        found |= self.choice(model, others, QUESTIONS[1], "others unseen")
        for group, facts in self.facts.items():
            right = self._completed(model, facts if part is None else facts[part % PARTS :: PARTS])
            found[group] = [sum(right), len(right)]
        found["damage"] = self.damage(model)
        sets = {
            "targets": targets,
            "known": data.known_test[DAMAGE_CITIES:],
            "unknown": data.unknown_test[:UNKNOWN],
        }
        states = {
            name: entity_states(model, self.tokenizer, cities, LAYER, held_out=True) for name, cities in sets.items()
        }
        probe = refit_discriminator(states["targets"], states["known"], states["unknown"], "linear", repeats=2)
        found["probe"] = {k: getattr(probe, k).value for k in ("targets", "floor", "ceiling")}
        return found

    @torch.no_grad()
    def rounded(self, model: nn.Module, targets: EntitySet) -> dict[str, Any]:
        """Recall in the unseen form after the merged weights are rounded to 8 and 4 bits."""

        def asked(which: nn.Module) -> dict[str, Any]:
            return self.choice(which, targets, QUESTIONS[1], "targets unseen")

        return {f"int{int(point.strength)}": point.found for point in rounding_attack(model, asked, (8, 4))}

    def choice(self, model: nn.Module, cities: EntitySet, question: str, name: str) -> dict[str, Any]:
        """Number of cities whose country is ranked first and their number, and the same of its probability."""
        log_p, p = self._countries(model, cities, question)
        right = (log_p - self.priors[question]).argmax(dim=1) == torch.tensor(self.data.right(cities))
        return {name: [int(right.sum()), len(right)], f"{name} p": [float(p.sum()), len(p)]}

    @torch.no_grad()
    def _countries(self, model: nn.Module, cities: EntitySet, question: str) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the countries' first tokens, `[cities, countries]`, and of the right one, `[cities]`."""
        rows = [self.tokenizer(fact.prompt).input_ids for fact in question_facts(cities, question)]
        log_p = torch.zeros(len(rows), len(self.first))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), 24):
            part = order[start : start + 24]
            ids, mask = right_padded([rows[i] for i in part])
            last = torch.zeros_like(mask)
            last[torch.arange(len(part)), mask.sum(dim=1) - 1] = True
            log_p[part] = wanted_logits(model, ids, mask, last).log_softmax(dim=-1)[:, self.first]
        return log_p, log_p[torch.arange(len(rows)), self.data.right(cities)].exp()

    def _right(self, facts: Sequence[Fact]) -> list[int]:
        """Places of at most eighty facts that the base completes rightly, in turn of their relations."""
        right = self._completed(self.model, facts[:EXAMINED])
        return [i for i, one in enumerate(right) if one][:FACTS_OF_A_GROUP]

    @torch.no_grad()
    def _completed(self, model: nn.Module, facts: Sequence[Fact]) -> list[bool]:
        """Whether each answer is the greedy continuation of its prompt, read with the answer in place."""
        right: list[bool] = []
        for start in range(0, len(facts), 24):
            batch = encode(self.tokenizer, [Row(f.prompt, f.answers[0]) for f in facts[start : start + 24]])
            hits = scored_logits(model, batch).argmax(dim=-1) == batch.targets
            wrong = set(batch.row[~hits].tolist())
            right += [i not in wrong for i in range(len(batch.ids))]
        return right


@torch.no_grad()
def _divergence(model: nn.Module, batches: Sequence[Batch], base: Sequence[Tensor]) -> float:
    total, count = 0.0, 0
    for batch, before in zip(batches, base, strict=True):
        now = scored_logits(model, batch).log_softmax(dim=-1)
        total += float(nn.functional.kl_div(now, before, reduction="sum", log_target=True))
        count += len(before)
    return total / count
