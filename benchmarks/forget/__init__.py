"""What a guardrail forgets and damages, beside gradient methods."""
