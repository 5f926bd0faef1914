"""Residual states of a model at the last token of an entity's name."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.prompts import locate_entity
from sae_unlearn.alignment.templates import entity_templates, render
from sae_unlearn.backbone.adapters_off import adapters_off
from sae_unlearn.backbone.layers import base_model_of
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.checks import check_all
from sae_unlearn.errors import UnlearnError


def entity_states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    entities: Sequence[Entity],
    layer: int,
    templates: Mapping[str, str | Sequence[str]] | Sequence[str] | None = None,
    held_out: bool = False,
    adapters: bool = True,
    chat_template: bool = False,
    batch_size: int = 64,
) -> Tensor:
    """Residuals after `layer` at the last token of each entity's name: `[entities, templates, d_in]` float32.

    Rows end with the name, since nothing later can change what is read, and run no further than `layer`.

    Args:
        model: a causal language model, bare or a `PeftModel`.
        entities: entities of any types; all types need equally many templates.
        layer: 0-based decoder layer whose output is read.
        templates: texts with "{entity}" for all types, or a mapping of types to theirs, or None for the library's.
        held_out: take, from the library's, those that are never trained on.
        adapters: False reads the base model, with the adapters of a `PeftModel` disabled.
        chat_template: put the prompt into the tokenizer's chat template.

    Raises:
        AlignmentError: a name cannot be located in its prompt.
        UnlearnError: no entities, or types with different numbers of templates.
    """
    if not len(entities):
        raise UnlearnError("entities=[]: expected at least one.")
    check_all(entities, Entity, "entities")
    if templates is None or isinstance(templates, Mapping):
        chosen = [entity_templates(entity.entity_type, templates, held_out) for entity in entities]
    else:
        chosen = [tuple(templates)] * len(entities)
    if len({len(of_entity) for of_entity in chosen}) > 1:
        numbers = {e.entity_type: len(of_entity) for e, of_entity in zip(entities, chosen, strict=True)}
        raise UnlearnError(f"templates={numbers}: expected equal numbers. Read one type at a time.")
    rows, places = [], []
    for entity, of_entity in zip(entities, chosen, strict=True):
        for template in of_entity:
            tokens = locate_entity(tokenizer, render(template, entity), chat_template=chat_template)
            rows.append(tokens.input_ids)
            places.append(tokens.position)
    found: dict[int, Tensor] = {}
    with nullcontext() if adapters else adapters_off(model):
        for batch in residual_batches(base_model_of(model), rows, layer, batch_size):
            for row, index in zip(batch.residual, batch.index, strict=True):
                found[index] = row[places[index]].float().cpu()
    return torch.stack([found[i] for i in range(len(rows))]).unflatten(0, (len(entities), -1))
