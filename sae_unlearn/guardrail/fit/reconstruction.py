"""Judgment of an SAE by its explained variance on a sample of a corpus.

The sample is the first tokens of each batch.
An SAE explains the topics of its training texts better than others. `sae.explained` has the equation.
"""

from collections.abc import Mapping
from typing import Any

from sae_unlearn.checks import real


SAMPLE = 64  # tokens of a batch: the same sample however processes share the batches
LEAST_EXPLAINED = 0.5
"""Explained variance of other text below which the SAE may be of another layer.

The demo's SAE (layer 9) explains 0.8 of its own layer's output, 0.4 of layer 8's, and less than a constant does of
layer 10's.
"""
LARGEST_GAP = 0.1
"""Explained variance of other text less that of the topic, above which the SAE may not know the topic."""


def fits_layer(calibration: Mapping[str, Any]) -> bool:
    """Return False if the SAE was measured to explain too little of other text.

    Without other text, the topic's text is judged.
    """
    known, other = _explained(calibration)
    least = known if other is None else other
    return least is None or least >= LEAST_EXPLAINED


def knows_topic(calibration: Mapping[str, Any]) -> bool:
    """Return False if the SAE was measured to explain less of the topic than of other text."""
    known, other = _explained(calibration)
    return known is None or other is None or known >= other - LARGEST_GAP


def reconstruction_warning(calibration: Mapping[str, Any]) -> str | None:
    """Return what speaks against the SAE by its explained variance, with a remedy; None if nothing does."""
    known, other = _explained(calibration)
    if not fits_layer(calibration):
        text, least = ("the topic", known) if other is None else ("other text", other)
        reason = "does not fit this layer: it" if least is None or least < 0.005 else "may be of another layer: it"
        return f"The SAE {reason} explains {_share(least)} of the variance of {text}. Pass one of this model and layer."
    if not knows_topic(calibration):
        return (
            f"The SAE explains {_share(known)} of the variance of the topic and {_share(other)} of other text's, so it "
            "may not know the topic. Train one on texts that hold it."
        )
    return None


def _explained(calibration: Mapping[str, Any]) -> tuple[float | None, float | None]:
    found = calibration.get("explained_variance")
    values = found if isinstance(found, Mapping) else {}
    return real(values.get("forget")), real(values.get("retain"))


def _share(value: float | None) -> str:
    return "none" if value is None or value < 0.005 else f"{value:.0%}"
