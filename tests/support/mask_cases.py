"""Ids, masks in the form of an attention kernel, and what a guarded model records of them."""

import torch
from transformers.masking_utils import create_masks_for_generate
from zoo import token_ids, with_cache

from sae_unlearn import record_firings
from sae_unlearn.guardrail.runtime.call_context import INPUTS, note, noted
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, hooks_of
from sae_unlearn.guardrail.runtime.pass_mask import kept_tokens


SEQ, HEADS = 12, 4
IDS = token_ids(6, SEQ)
SEEN = torch.ones(SEQ, SEQ).tril().bool()[None, None].expand(len(IDS), 1, SEQ, SEQ)
CAUSAL = torch.zeros(SEEN.shape).masked_fill(~SEEN, -torch.inf)
PLACES = torch.arange(SEQ)
OFF_DIAGONAL = SEEN & ~torch.eye(SEQ, dtype=torch.bool) | (PLACES == 0)
DISTANCE = (PLACES[:, None] - PLACES).abs()


def records(model, ids=IDS, **inputs):
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=ids, **inputs)
    return [(f.row, f.statistic, f.fired, f.evidence, f.tokens) for f in firings]


def kept_of(model, mask, ids=IDS):
    """Tokens that the gate would keep, by the hooks, without the model: attention may not take such a mask."""
    backbone = model.get_base_model().model
    try:
        hooks_of(backbone, BackboneHooks).before(backbone, (), {"input_ids": ids, "attention_mask": mask})
        return kept_tokens(noted(INPUTS), *ids.shape, ids.device)
    finally:
        note(INPUTS, None)


def masks_of(model, ids, mask, cache, positions):
    """What `generate` makes of a 2-D mask for a model that is compiled."""
    return create_masks_for_generate(
        config=model.config,
        inputs_embeds=model.get_input_embeddings()(ids),
        attention_mask=mask,
        position_ids=positions,
        **with_cache(model, cache),
    )
