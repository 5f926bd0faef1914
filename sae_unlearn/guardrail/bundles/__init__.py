"""Several guardrails, and a LoRA, in one folder."""
