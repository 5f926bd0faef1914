"""Guardrails and a LoRA on a tiny model, to be saved as one bundle."""

from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import attach_guardrail


IDS = token_ids(24, 12)
logits = partial(logits_of, input_ids=IDS)


def with_guards(model, root, names=("biology", "person"), first=1, **fields):
    for layer, name in enumerate(names, first):
        guarded("llama", layer=layer, **fields).save_pretrained(root / f"alone-{name}")
        model = attach_guardrail(model, root / f"alone-{name}", adapter_name=name)
    return model


def lora():
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base_model("llama"), config, adapter_name="aligned").eval()
