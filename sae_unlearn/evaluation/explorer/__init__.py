"""Page of a guardrail: one HTML file with its own style and drawings, without scripts and requests."""
