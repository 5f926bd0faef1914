"""Fixtures that these files share."""

import pytest
import torch
from peft import get_peft_model
from peft_folders import logits, lora_config
from transformers import AutoModelForCausalLM
from zoo import base_model, plant, planted_config


@pytest.fixture(scope="session")
def plain():
    return logits(base_model("llama"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A saved base model, a guardrail fitted to it in `guard`, and a LoRA in `lora`; and the logits with each."""
    root = tmp_path_factory.mktemp("peft")
    base_model("llama").save_pretrained(root / "base")
    guard = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), planted_config(threshold=0.6))
    plant(guard)
    guard.save_pretrained(root / "guard")
    torch.manual_seed(0)
    lora = get_peft_model(base_model("llama"), lora_config())
    lora.save_pretrained(root / "lora")
    return {"root": root, "guard": logits(guard.eval()), "lora": logits(lora.eval())}
