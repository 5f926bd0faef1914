"""The model under a guardrail: whether it is the right one, how it is saved, and what else is on it."""
