"""The guardrail inside serving engines, compared with `generate()` of transformers on the demo's model."""
