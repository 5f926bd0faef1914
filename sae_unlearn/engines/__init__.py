"""The guardrail inside serving engines."""
