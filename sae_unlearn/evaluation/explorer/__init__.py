"""The page of a guardrail: one HTML file with its own style and drawings, which loads nothing and runs no script."""
