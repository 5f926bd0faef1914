"""Bundles: several guardrails, and optionally a LoRA, in one folder."""
