"""The end of a fit: all its guardrails are on the model, or none is."""

from collections.abc import Iterable, Mapping

from peft import PeftModel
from torch import nn

from sae_unlearn.guardrail.attach import detach_guardrail, place_guardrail
from sae_unlearn.guardrail.fit.passes import FitPasses
from sae_unlearn.guardrail.storage.reading import Artefact


def place_fitted(model: nn.Module, artefacts: Mapping[str, Artefact], passes: Iterable[FitPasses]) -> PeftModel:
    """Put what was fitted on a model, by name, and remove what `passes` had written down.

    If any of that fails or is interrupted, the model is left as it was.
    """
    guarded, placed = model, []
    try:
        for name, artefact in artefacts.items():
            guarded = place_guardrail(guarded, artefact, name)
            placed.append(name)
        for each in passes:
            if each.checkpoint is not None:
                each.checkpoint.remove()
    except BaseException:
        for name in placed:
            detach_guardrail(guarded, name)
        raise
    return guarded
