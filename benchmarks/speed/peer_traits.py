"""What the arms of `peers.py` are and do. Loads no torch."""

from typing import NamedTuple


OURS, FORMER = "guardrail, fires", "former gate, fires"


class Traits(NamedTuple):
    """What an arm does: its gate, what that is decided on, and its edit."""

    gate: str
    decided_on: str
    edit: str


TRAITS = {
    "none": Traits("–", "–", "none"),
    "guardrail, quiet": Traits("per row", "the row so far, state in the cache", "none here"),
    OURS: Traits("per row", "the row so far, state in the cache", "20 features, where active"),
    FORMER: Traits("per row", "the row so far, state in the cache", "20 features, where active"),
    "repsteer, direction": Traits("none", "–", "one direction, everywhere"),
    "repsteer, gated clamp": Traits("per row", "the prompt, once", "one feature, everywhere"),
    "SAELens SAE": Traits("none", "–", "20 features, everywhere"),
    "authors' hook": Traits("per row", "the tokens of this call", "20 features, at hot tokens"),
    "whole SAE, rewritten": Traits("per row", "the tokens of this call", "20 features, at hot tokens"),
    "LoRA": Traits("none", "–", "weights, everywhere"),
}

FIT_TRAITS = {
    "truncated": "one pass up to the layer, nothing kept",
    "truncated, dose": "the same, and the dose's rows once more",
    "fit": "features, gate, threshold out of folds, dose, report",
    "fit without regressions": "the same less the gate's regressions",
    "authors' statistics": "mean activation of each feature, all activations kept; no selection, no threshold",
    "repsteer DiffMean": "the difference of two means; no gate",
    "LoRA": "one epoch of gradient steps",
}
