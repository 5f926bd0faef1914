"""Fitting: from a forget corpus and a retain corpus to a guardrail."""
