"""What is measured of a model that was to forget cities: see `real.py`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.alignment.data import QUESTIONS, AlignmentData, question_facts
from benchmarks.representation.collapse import collapse_ratio
from benchmarks.representation.held_out_latents import held_out_firing, held_out_latents
from benchmarks.representation.probes import fit_base_probe, read_base_probe, refit_discriminator
from benchmarks.representation.states import entity_states
from sae_unlearn import SparseAutoencoder
from sae_unlearn.alignment import Entity, EntitySet
from sae_unlearn.alignment.dataset import match_unknown
from sae_unlearn.evaluation import (
    Estimate,
    Fact,
    ask,
    candidate_log_probs,
    rank_answers,
    recall,
    row_divergences,
    row_losses,
)
from sae_unlearn.evaluation.audit.attacks.direction import direction_attack, known_direction
from sae_unlearn.evaluation.audit.attacks.relearning import relearning_attack, split_subjects
from sae_unlearn.evaluation.audit.attacks.rounding import rounding_attack


TRAINED_QUESTIONS = (QUESTIONS[0], "{entity} is a city in the country of")
"""Forms in which the baselines train on targets, and all methods on neighbors; `QUESTIONS[1]` is in no training."""

NEIGHBORS, OTHER_FACTS, TEXTS = 30, 24, 12
EXAMINED = 120  # other facts that the base is asked, at most, to find those that it knows


class Parts(NamedTuple):
    """The model, bare and as it came, with what reads it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    sae: SparseAutoencoder
    data: AlignmentData
    seed: int


def measure(parts: Parts, model: nn.Module, trained_on: Sequence[int] = ()) -> dict[str, Any]:
    """What the model says of targets and of other things, and where the targets' states stand."""
    data, tokenizer = parts.data, parts.tokenizer
    neighbors, unknown = data.known_test[:NEIGHBORS], data.unknown_test[:NEIGHBORS]
    found: dict[str, Any] = {}
    with torch.no_grad():
        for form, question in zip(("seen", "unseen"), QUESTIONS, strict=True):
            priors = _priors(parts, question)
            asked = {"targets": data.targets}
            if form == "unseen":
                asked |= {"neighbors": neighbors, "unknown": unknown}
            for name, cities in asked.items():
                found[f"{name} {form}"] = _ranked(parts, model, cities, question, priors).recall.to_dict()
        answers = ask(model, tokenizer, question_facts(data.targets, QUESTIONS[1]), max_new_tokens=5)
        found["said of targets"] = {kind: getattr(answers, kind).to_dict() for kind in ("right", "wrong", "refused")}
        for group, facts in _facts_known_to_base(parts).items():
            found[group] = ask(model, tokenizer, facts, max_new_tokens=5).right.to_dict() if facts else None
        texts = data.wiki[:TEXTS]
        found["text loss"] = Estimate.mean(row_losses(model, tokenizer, texts, max_length=64)).to_dict()
        if isinstance(model, PeftModel):
            found["text KL"] = Estimate.mean(row_divergences(model, tokenizer, texts, max_length=64)).to_dict()
    return found | _alignment(parts, model, trained_on)


def _alignment(parts: Parts, model: nn.Module, trained_on: Sequence[int]) -> dict[str, Any]:
    data, sae, layer = parts.data, parts.sae, parts.sae.layer
    found: dict[str, Any] = {}
    sets = {"targets": data.targets, "known": data.known_test[:NEIGHBORS], "unknown": data.unknown_test[:NEIGHBORS]}
    base = _base_states(parts, model)
    probe = fit_base_probe(base["known"], base["unknown"])
    for form, held_out in (("seen", False), ("unseen", True)):
        states = {
            name: entity_states(model, parts.tokenizer, cities, layer, held_out=held_out)
            for name, cities in sets.items()
        }
        reading = read_base_probe(probe, states["targets"], states["unknown"])
        spread = collapse_ratio(*(sae.pre_activations(states[name]) for name in ("targets", "unknown")))
        found[f"probe {form}"] = {"p_known": reading.p_known.to_dict(), "auc": reading.auc.to_dict()}
        for kind in ("linear", "kernel") if held_out else ():
            again = refit_discriminator(states["targets"], states["known"], states["unknown"], kind, repeats=6)
            found[f"{kind} {form}"] = {k: getattr(again, k).to_dict() for k in ("targets", "floor", "ceiling")}
        found[f"variance ratio {form}"] = spread.pooled.to_dict()
        for side, ids in zip(
            ("known", "unknown"), held_out_latents(sae, base["known"], base["unknown"], trained_on), strict=True
        ):
            if ids:
                firing = held_out_firing(sae, ids, states["targets"], states["known"], states["unknown"])
                found[f"held-out {side} latents {form}"] = {
                    k: getattr(firing, k).to_dict() for k in ("targets", "known", "unknown")
                }
    return found


def attack(parts: Parts, model: PeftModel) -> dict[str, Any]:
    """What brings the forgotten facts back; recall on the form of question that no method trains on."""
    data, tokenizer, layer = parts.data, parts.tokenizer, parts.sae.layer
    priors = _priors(parts, QUESTIONS[1])

    def ranked(which: nn.Module, cities: Sequence[Entity] = data.targets) -> dict[str, Any]:
        return _ranked(parts, which, cities, QUESTIONS[1], priors).recall.to_dict()

    found: dict[str, Any] = {}
    states = _base_states(parts, model)
    points = direction_attack(
        model,
        layer,
        known_direction(states["known"], states["unknown"]),
        ranked,
        (1.0,),
        [name for city in data.targets for name in city.names],
        tokenizer,
    )
    found["direction"] = {str(point.strength): point.found for point in points}
    found["rounding"] = {str(point.strength): point.found for point in rounding_attack(model, ranked, (4,))}
    taught, facts, rest = taught_and_rest(data.targets, parts.seed)

    def both(student: nn.Module) -> dict[str, Any]:
        return {"rest": ranked(student, rest), "taught": ranked(student, taught)}

    points = relearning_attack(model, tokenizer, facts, both, steps=(0, 20), seed=parts.seed)
    for name, side in (("relearning", "rest"), ("relearning, taught", "taught")):
        found[name] = {str(int(point.strength)): point.found[side] for point in points}
    return found


def taught_and_rest(targets: EntitySet, seed: int) -> tuple[EntitySet, list[Fact], EntitySet]:
    """Half of the cities, the facts about them that an attacker teaches, and the other cities, none of which is taught.

    The subject of a fact names its type as well, "city Tashkent", so cities are found by their facts and not by name.
    """
    facts = question_facts(targets, TRAINED_QUESTIONS[0])
    taught_facts, _ = split_subjects(facts, seed=seed)
    subjects = {fact.subject for fact in taught_facts}
    of_city = [{fact.subject for fact in question_facts([city], TRAINED_QUESTIONS[0])} for city in targets]
    taught = EntitySet([city for city, own in zip(targets, of_city, strict=True) if own & subjects])
    return taught, taught_facts, targets.without(taught)


def exchange(parts: Parts) -> dict[str, Any]:
    """Recall of the base model with the state at a name's last token, after the SAE's layer, exchanged for that of an
    unknown city in the same question: what is left is what no change of that state can take away."""
    data, tokenizer, layer = parts.data, parts.tokenizer, parts.sae.layer
    pairs = match_unknown(data.targets, data.unknown_train, per_target=1, seed=parts.seed)
    others = EntitySet([data.unknown_train[few[0]] for few in pairs])
    found: dict[str, Any] = {}
    for form, question in zip(("seen", "unseen"), QUESTIONS, strict=True):
        priors = _priors(parts, question)
        states = [
            entity_states(parts.model, tokenizer, cities, layer, [question])[:, 0] for cities in (data.targets, others)
        ]
        right = []
        for city, mine, other in zip(data.targets, *states, strict=True):

            def asked(model: nn.Module, city: Entity = city, question: str = question, priors: Any = priors) -> float:
                return _ranked(parts, model, [city], question, priors).recall.value

            points = direction_attack(parts.model, layer, other - mine, asked, (0.0, 1.0), list(city.names), tokenizer)
            right.append([point.found > 0 for point in points])
        for i, name in enumerate(("whole", "exchanged")):
            found[f"{name} {form}"] = Estimate.share([r[i] for r in right]).to_dict()
    return found


def _base_states(parts: Parts, model: nn.Module) -> dict[str, torch.Tensor]:
    """States of training cities in the base model."""
    return {
        name: entity_states(model, parts.tokenizer, cities, parts.sae.layer, adapters=False)
        for name, cities in (("known", parts.data.known_train[:60]), ("unknown", parts.data.unknown_train[:60]))
    }


_CACHE: dict[tuple[Any, ...], Any] = {}


def _cached(key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    if key not in _CACHE:
        _CACHE[key] = make()
    return _CACHE[key]


def read_base(parts: Parts) -> None:
    """What is compared with the bare model, measured before any adapter is put on it."""
    for question in QUESTIONS:
        _priors(parts, question)
    _facts_known_to_base(parts)


def _priors(parts: Parts, question: str) -> torch.Tensor:
    """Mean log-probability of each country in the base model."""
    data = parts.data
    cities = EntitySet([*data.known_test[:NEIGHBORS], *data.unknown_test[:NEIGHBORS], *data.targets])
    prompts = [fact.prompt for fact in question_facts(cities, question)]

    def make() -> torch.Tensor:
        return candidate_log_probs(parts.model, parts.tokenizer, prompts, data.countries).mean(dim=0)

    return _cached(("priors", parts.seed, question), make)


def _ranked(parts: Parts, model: nn.Module, cities: Sequence[Entity], question: str, priors: torch.Tensor) -> Any:
    prompts = [fact.prompt for fact in question_facts(cities, question)]
    scores = candidate_log_probs(model, parts.tokenizer, prompts, parts.data.countries)
    return rank_answers(scores, parts.data.right(cities), priors=priors)


def _facts_known_to_base(parts: Parts) -> dict[str, list[Fact]]:
    """Of each group at most so many facts that the base model completes rightly."""

    def make(facts: list[Fact]) -> list[Fact]:
        kept: list[Fact] = []
        for start in range(0, min(len(facts), EXAMINED), 40):
            found = recall(parts.model, parts.tokenizer, facts[start : start + 40], max_new_tokens=5)
            kept += [one.fact for one in found if one.right]
            if len(kept) >= OTHER_FACTS:
                break
        return kept[:OTHER_FACTS]

    groups = {**{f"leak: {route}": facts for route, facts in parts.data.entity_free.items()}, **parts.data.facts}
    return {
        name: _cached(("facts", parts.seed, name), lambda facts=facts, name=name: make(_spread(facts)))
        for name, facts in groups.items()
    }


def _spread(facts: Sequence[Fact]) -> list[Fact]:
    """The same facts, every relation's in turn."""
    step = 40
    return [fact for offset in range(step) for fact in facts[offset::step]]
