"""Which decoder layer an SAE reads, from the names that published SAEs give to the place."""

from __future__ import annotations

import re

from sae_unlearn.sae.errors import SAEFormatError


# No model has layers of more than four digits; and what `int` reads is bounded.
# TransformerLens: the residual stream after block L, or before it (which is the one after block L - 1).
RESID_POST = re.compile(r"blocks\.(\d{1,4})\.hook_resid_post", re.ASCII)
RESID_PRE = re.compile(r"blocks\.(\d{1,4})\.hook_resid_pre", re.ASCII)

# Hugging Face: a decoder layer as a module, or its output, under the names that the model families use.
LAYER_OUTPUT = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h)\.(\d{1,4})(?:\.output)?", re.ASCII)


def layer_of_hook(name: str) -> int:
    """The 0-based decoder layer whose output the hook point `name` is.

    "blocks.9.hook_resid_post", "blocks.10.hook_resid_pre" and "model.layers.9.output" are the same tensor: what
    layer 9 hands to layer 10.

    Raises:
        SAEFormatError: `name` is another place (MLP, attention, embedding, ...).
    """
    if not isinstance(name, str):
        raise SAEFormatError(f"hook name is {name!r:.80}; expected text such as 'blocks.9.hook_resid_post'")
    if match := RESID_POST.fullmatch(name) or LAYER_OUTPUT.fullmatch(name):
        return int(match[1])
    if (match := RESID_PRE.fullmatch(name)) and int(match[1]) >= 1:
        return int(match[1]) - 1
    raise SAEFormatError(
        f"this SAE reads {name!r:.80}, which is not the output of a decoder layer; only residual-stream SAEs are "
        "supported ('blocks.L.hook_resid_post', or 'blocks.L.hook_resid_pre' with L >= 1)"
    )
