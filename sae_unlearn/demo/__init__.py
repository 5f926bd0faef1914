"""The demo: a guardrail fitted on a small, real language model, and its parts for experiments."""

from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.demo.run import DemoReport, run_demo
from sae_unlearn.demo.texts import DemoTexts, load_demo_texts


__all__ = ["DemoReport", "DemoTexts", "load_demo_model", "load_demo_sae", "load_demo_texts", "run_demo"]
