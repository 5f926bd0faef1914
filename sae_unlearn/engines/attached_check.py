"""Test of the guardrails on a model in this process by their stored rows, before it serves."""

from typing import Any

import torch

from sae_unlearn.backbone.layers import input_embeddings
from sae_unlearn.engines.probe_check import finding, rows_to_test
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.runtime.recording import record_firings


def check_attached(model: Any) -> dict[str, str]:
    """Send the stored rows of each guardrail through a model, and return a finding for each.

    A guardrail behind an earlier layer's one reads a stream which that one may have edited, so it is only checked that
    it judges.

    Args:
        model (PeftModel): A model with active guardrails.

    Raises:
        GuardrailError: If a guardrail did not judge, or not as at the fit.
    """
    vocabulary, device = input_embeddings(model).weight.shape[0], next(model.parameters()).device
    longest = int(getattr(model.config, "max_position_embeddings", None) or 8192)
    first = min(config.layer for config in model.peft_config.values())
    found = {}
    for name, config in model.peft_config.items():
        rows = rows_to_test(config, vocabulary, longest)
        fired = []
        for row in rows:
            ids = torch.tensor([row.ids], device=device)
            with torch.inference_mode(), record_firings(model) as firings:
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
            own = [firing for firing in firings if firing.adapter == name]
            if not own or not own[0].tokens:
                raise GuardrailError(f"guardrail {name}: expected a record of {len(row.ids)} tokens, got {own!r:.80}.")
            fired.append(own[0].fired)
        found[name] = finding(name, rows, fired, config.layer == first)
    return found
