"""From two corpora of text to a guardrail."""
