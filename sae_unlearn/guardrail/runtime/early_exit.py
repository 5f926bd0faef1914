"""Drafts by the first layers of the model itself (`assistant_early_exit`), and what is left of one that failed.

For a draft transformers lowers `config.num_hidden_layers` and calls the model. Of a guardrail behind these layers the
draft sees nothing, and need not: the whole model judges each drafted token before it is taken. After an error
transformers 5.24 leaves the config as it was for the draft, and every later call would run those few layers alone.
"""

import sys
from types import FrameType

from torch import nn
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator


_DRAFTING = EarlyExitCandidateGenerator.get_candidates.__code__


def is_draft(backbone: nn.Module) -> bool:
    """Whether the running pass of `backbone` is a draft of that kind."""
    return _draft_of(backbone) is not None


def end_draft(backbone: nn.Module) -> None:
    """Give the config its number of layers again, if the running pass is a draft. For a pass that an error ends."""
    frame = _draft_of(backbone)
    if frame is not None:
        frame.f_locals["base_model"].config.num_hidden_layers = frame.f_locals["original_num_hidden_layers"]


def _draft_of(backbone: nn.Module) -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _DRAFTING:
            drafting = frame.f_locals.get("base_model")
            if isinstance(drafting, nn.Module) and any(module is backbone for module in drafting.modules()):
                return frame
        frame = frame.f_back
    return None
