"""The page of a guardrail: one HTML file with its own style and drawings, which fetches nothing and runs nothing."""

from sae_unlearn.evaluation.explorer.page import render_page


__all__ = ["render_page"]
