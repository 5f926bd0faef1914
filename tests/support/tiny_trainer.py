"""A trainer on the tiny parts, and its weights."""

import torch
from tiny_entities import parts, settings

from sae_unlearn.alignment import Entity, EntitySet, SAEAlignmentTrainer


def trainer(folder, name="llama", **options) -> SAEAlignmentTrainer:
    """A trainer on the tiny parts; options of the settings, and arguments of the trainer, by their names."""
    given = parts(name)
    own = {
        k: options.pop(k)
        for k in list(options)
        if k in (*given, "peft_config", "eval_dataset", "callbacks", "compute_metrics")
    }
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **{**given, **own})


def without_attributes(given) -> EntitySet:
    return EntitySet([Entity(one.entity, one.entity_type) for one in given])


def lora_weights(it) -> dict[str, torch.Tensor]:
    model = it.model if isinstance(it, SAEAlignmentTrainer) else it
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def largest_difference(a, b) -> float:
    assert a.keys() == b.keys()
    assert a
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def weights(it) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in it.model.named_parameters() if p.requires_grad}


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def batches(folder, **options) -> list[list[tuple[int, ...]]]:
    """The targets' rows of each batch that a training meets."""
    it = trainer(folder, **options)
    collate, met = it.data_collator, []

    def noting(items):
        met.append([tuple(item["input_ids"]) for item in items])
        return collate(items)

    it.data_collator = noting
    it.train()
    return met
