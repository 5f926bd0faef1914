"""Drafts by the first layers of the model (`assistant_early_exit`), and cleanup after failed ones.

For a draft transformers lowers `config.num_hidden_layers` and calls the model. A guardrail behind these layers does not
see the draft, and need not: the whole model judges each drafted token before it is accepted. After an error
transformers 5.24 leaves the config as it was for the draft, and every later call would run only those layers.
"""

from types import FrameType

from torch import nn
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator

from sae_unlearn.guardrail.runtime.call_context import frames


_DRAFTING = EarlyExitCandidateGenerator.get_candidates.__code__


def is_draft(backbone: nn.Module) -> bool:
    """Return True if the running pass of `backbone` is such a draft."""
    return _draft_of(backbone) is not None


def end_draft(backbone: nn.Module) -> None:
    """Restore the config's number of layers if the running pass is a draft. For a pass that an error ends."""
    frame = _draft_of(backbone)
    if frame is not None:
        frame.f_locals["base_model"].config.num_hidden_layers = frame.f_locals["original_num_hidden_layers"]


def _draft_of(backbone: nn.Module) -> FrameType | None:
    for frame in frames():
        if frame.f_code is _DRAFTING:
            drafting = frame.f_locals.get("base_model")
            if isinstance(drafting, nn.Module) and any(module is backbone for module in drafting.modules()):
                return frame
    return None
