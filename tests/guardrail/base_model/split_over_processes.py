"""A model that transformers splits over processes, run by `test_tensor_parallel`; prints what attaching raises."""

import sys

import torch
from transformers import AutoModelForCausalLM

from sae_unlearn import attach_guardrail
from sae_unlearn.errors import GuardrailUnsupported


if __name__ == "__main__":
    folder, guardrail = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    try:
        attach_guardrail(model, guardrail)
    except GuardrailUnsupported as error:
        sys.stdout.write(f"refused: {error}\n")  # at once: the processes share the stream
    torch.distributed.destroy_process_group()
