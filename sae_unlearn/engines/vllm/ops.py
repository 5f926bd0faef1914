"""The operators that a guarded layer calls: opaque to torch.compile, in place and without a result.

`guard(hidden!, residual!, key)` is for layers that return `(hidden_states, residual)`, whose sum is the residual
stream, and `guard_one(hidden!, key)` for those that return the stream itself.
"""

# No `from __future__ import annotations`: vLLM reads the schema from the signatures.
from collections.abc import Callable
from typing import Any

import torch


Edit = Callable[[torch.Tensor, torch.Tensor | None], None]

_EDITS: dict[int, Edit] = {}
_LIBRARY: list[Any] = []


def add(edit: Edit, layer: int) -> int:
    """Return the number under which the operators call `edit(hidden, residual)`.

    It is a constant in compiled code. The first engine of a process gets the same numbers in every process.
    """
    key = layer
    while key in _EDITS:
        key += 2**16
    _EDITS[key] = edit
    return key


def register() -> None:
    """Register the operators with torch, once for each process."""
    if _LIBRARY:
        return
    from vllm.utils.torch_utils import direct_register_custom_op

    library = torch.library.Library("sae_unlearn", "FRAGMENT")
    direct_register_custom_op(
        "guard", _guard, ["hidden", "residual"], lambda hidden, residual, key: None, target_lib=library
    )
    direct_register_custom_op("guard_one", _guard_one, ["hidden"], lambda hidden, key: None, target_lib=library)
    _LIBRARY.append(library)


def _guard(hidden: torch.Tensor, residual: torch.Tensor, key: int) -> None:
    _EDITS[key](hidden, residual)


def _guard_one(hidden: torch.Tensor, key: int) -> None:
    _EDITS[key](hidden, None)
