"""What is measured of a model that has been made to forget entities of the synthetic world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.baselines.rows import Batch, encode
from benchmarks.representation.collapse import collapse_ratio
from benchmarks.representation.probes import fit_base_probe, read_base_probe, refit_discriminator
from benchmarks.representation.states import entity_states
from benchmarks.synthetic.words import HELD_OUT_TEMPLATES, QUESTIONS, TEMPLATES, VALUES
from benchmarks.synthetic.world import REFUSAL, Person, Row, World
from sae_unlearn import SparseAutoencoder
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.residual_stream import truncated
from sae_unlearn.evaluation.audit.attacks.relearning import relearning_attack
from sae_unlearn.evaluation.metrics.recall import Fact


RELEARNING_STEPS = (0, 10, 20, 40)


def entity_set(people: Sequence[Person]) -> EntitySet:
    """People as the entities of `sae_unlearn.alignment`."""
    return EntitySet([{"entity": p.name, "entity_type": p.entity_type, "attributes": p.attributes} for p in people])


@torch.no_grad()
def answer_distributions(model: nn.Module, tokenizer, rows: Sequence[Row]) -> Tensor:
    """Log-probabilities of the token after each row's prompt: `[rows, vocabulary]`."""
    found = []
    for start in range(0, len(rows), 256):
        encoded = encode(tokenizer, rows[start : start + 256])
        first = encoded.predicts & (encoded.predicts.cumsum(dim=1) == 1)
        found.append(wanted_logits(model, encoded.ids, encoded.mask, first).log_softmax(dim=-1))
    return torch.cat(found)


def recall(model: nn.Module, tokenizer, rows: Sequence[Row]) -> dict[str, float]:
    """Shares of answers that are right, another value, or a refusal, and the mean probability of the right one."""
    log_p = answer_distributions(model, tokenizer, rows)
    said, right = log_p.argmax(dim=-1), torch.tensor([tokenizer.convert_tokens_to_ids(row.answer) for row in rows])
    values = torch.tensor([tokenizer.convert_tokens_to_ids(v) for some in VALUES.values() for v in some])
    refused = said == tokenizer.convert_tokens_to_ids(REFUSAL.split()[0])
    return {
        "right": (said == right).float().mean().item(),
        "wrong": ((said != right) & torch.isin(said, values)).float().mean().item(),
        "refused": refused.float().mean().item(),
        "p_right": log_p[torch.arange(len(rows)), right].exp().mean().item(),
    }


def divergence(first: nn.Module, second: nn.Module, tokenizer, rows: Sequence[Row]) -> float:
    """`mean over prompts of KL(first || second)` of the answer, in nats."""
    p, q = (answer_distributions(model, tokenizer, rows) for model in (first, second))
    return (p.exp() * (p - q)).sum(dim=-1).mean().item()


def behaviour(model: nn.Module, gold: nn.Module, world: World, tokenizer) -> dict[str, Any]:
    """What the model says of targets, unknown entities, neighbors, and of what has nothing to do with people."""
    return {
        "targets": recall(model, tokenizer, world.facts(world.targets)),
        "targets_held_out_form": recall(model, tokenizer, world.facts(world.targets, held_out=True)),
        "unknown": recall(model, tokenizer, world.facts(world.unknown_test)),
        "neighbors": recall(model, tokenizer, world.facts(world.neighbors)),
        "capitals": recall(model, tokenizer, world.capitals())["right"],
        "sums": recall(model, tokenizer, world.sums())["right"],
        "kl_gold": divergence(gold, model, tokenizer, world.facts(world.targets)),
        "kl_gold_held_out_form": divergence(gold, model, tokenizer, world.facts(world.targets, held_out=True)),
        "kl_gold_neighbors": divergence(gold, model, tokenizer, world.facts(world.neighbors)),
    }


@torch.no_grad()
def recall_without_name_state(model: nn.Module, world: World, tokenizer, layer: int) -> float:
    """Recall of targets with the state at their name's last token after `layer` exchanged for a never-seen person's.

    What is left is what reaches the answer by other ways: no method that changes this state alone can do more.
    """
    block = find_decoder_layers(model).layers[layer]
    right = []
    for (kind, attribute), forms in QUESTIONS.items():
        targets = [person for person in world.targets if person.entity_type == kind]
        strangers = [person for person in world.unknown if person.entity_type == kind][: len(targets)]
        for form in forms if targets else ():
            position = form.split().index("{entity}") + 2  # after <bos> and the first name
            ours, theirs = (
                torch.tensor(tokenizer([form.format(entity=person.name) for person in people])["input_ids"])
                for people in (targets, strangers)
            )
            with truncated(model, layer):
                strange = model(input_ids=theirs)[:, position]

            def exchange(module, args, output, position=position, strange=strange):
                residual = (output[0] if isinstance(output, tuple) else output).clone()
                residual[:, position] = strange
                return (residual, *output[1:]) if isinstance(output, tuple) else residual

            handle = block.register_forward_hook(exchange)
            try:
                said = model(input_ids=ours).logits[:, -1].argmax(dim=-1)
            finally:
                handle.remove()
            answers = [tokenizer.convert_tokens_to_ids(person.attributes[attribute]) for person in targets]
            right.append((said == torch.tensor(answers)).float())
    return torch.cat(right).mean().item()


def alignment(
    model: nn.Module, base: nn.Module, world: World, tokenizer, sae: SparseAutoencoder, layer: int
) -> dict[str, Any]:
    """Where the targets' states stand between those of unknown and known entities, type by type, averaged.

    Known and unknown: neighbors and never-seen people that no method has used, in the tuned model. The base probe is
    trained on the base model's states of the people that methods may use.
    """
    found: list[dict[str, float]] = []
    for kind in world.config.entity_types:

        def states(model: nn.Module, people: list[Person], templates: tuple[str, ...], kind: str = kind) -> Tensor:
            mine = entity_set([person for person in people if person.entity_type == kind])
            return entity_states(model, tokenizer, mine, layer, templates)

        row: dict[str, float] = {}
        trained, held_out = TEMPLATES[kind], HELD_OUT_TEMPLATES[kind]
        probe = fit_base_probe(states(base, world.known, trained), states(base, world.unknown, trained))
        for name, templates in (("", trained), ("_held_out_templates", held_out)):
            targets, known, unknown = (
                states(model, people, templates) for people in (world.targets, world.neighbors, world.unknown_test)
            )
            seen = refit_discriminator(targets, known, unknown, repeats=2)
            kernel = refit_discriminator(targets, known, unknown, kind="kernel", repeats=2)
            spread = collapse_ratio(*(sae.pre_activations(part) for part in (targets, unknown)), draws=2)
            reading = read_base_probe(probe, targets, unknown)
            row |= {
                "refitted_auc" + name: seen.targets.value,
                "refitted_floor" + name: seen.floor.value,
                "refitted_ceiling" + name: seen.ceiling.value,
                "kernel_auc" + name: kernel.targets.value,
                "probe_auc" + name: reading.auc.value,
                "probe_p_known" + name: reading.p_known.value,
                "variance_ratio" + name: spread.pooled.value,
            }
        found.append(row)
    return {name: sum(row[name] for row in found) / len(found) for name in found[0]}


def relearning(model: nn.Module, world: World, tokenizer, learning_rate: float = 1e-3) -> dict[str, list[float]]:
    """Teach one attribute of every target; recall of the two others, before any step and at each of the steps.

    The attributes of a person are drawn independently, so that nothing of what is taught says anything about what is
    measured: a rise can only come from what the model still holds. The gold model's curve is the control.
    """
    taught = [Fact(row.prompt, (row.answer,), row.name) for row in world.facts(world.targets, attributes=range(1))]
    measured = world.facts(world.targets, attributes=range(1, 3))
    points = relearning_attack(
        model,
        tokenizer,
        taught,
        lambda student: recall(student, tokenizer, measured),
        steps=RELEARNING_STEPS,
        learning_rate=learning_rate,
        batch_size=20,
    )
    return {name: [point.found[name] for point in points] for name in ("right", "p_right")}


def validation_batches(world: World, tokenizer) -> list[Batch]:
    """The rows on which every method's damage is measured: facts of people no method has used, and other text."""
    rows = world.facts(world.validation) + world.facts(world.validation, held_out=True) + world.unrelated(100, seed=77)
    return [encode(tokenizer, rows[start : start + 256]) for start in range(0, len(rows), 256)]


def measure(
    model: nn.Module,
    base: nn.Module,
    gold: nn.Module,
    world: World,
    tokenizer,
    sae: SparseAutoencoder,
) -> dict[str, Any]:
    """Everything, of one model."""
    model.eval()
    found = {
        "behaviour": behaviour(model, gold, world, tokenizer),
        "alignment": alignment(model, base, world, tokenizer, sae, sae.layer),
        "relearning": relearning(model, world, tokenizer),
    }
    unrelated = [row for row in world.unrelated(200, seed=78) if row.answer]
    if isinstance(model, PeftModel):
        found["behaviour"]["kl_base_unrelated"] = divergence(base, model, tokenizer, unrelated)
        found["behaviour"]["kl_base_neighbors"] = divergence(base, model, tokenizer, world.facts(world.neighbors))
    return found
