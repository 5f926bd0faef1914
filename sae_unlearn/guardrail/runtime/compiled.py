"""Recompilation of a guarded module when its guardrails change, without that of other modules.

Compiled code does not check for later hooks (tested: torch 2.13, `skip_nnmodule_hook_guards`): text would pass a
guardrail unseen. But it checks whether a module that it runs has a `forward` of its own, and its code
(`guard_to_detect_forward_monkeypatching`). So a guarded module gets a copy of its class's `forward`, a new one whenever
its guardrails change: the same bytecode in another code object.

`torch._dynamo.reset()`, which drops the compiled code of every model of the process, remains for modules with another
`forward` (accelerate's hooks set one), and for a torch that does not check it.
"""

import sys
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def compile_again(module: nn.Module) -> None:
    """Have code that runs `module` compiled again at its next call. Call it after its hooks have changed."""
    found, original = vars(module).get("forward"), type(module).forward
    if not isinstance(original, FunctionType) or (found is not None and not _is_copy(module, found)):
        _reset()
        return
    code, closure = original.__code__.replace(), original.__closure__
    copied = FunctionType(code, original.__globals__, original.__name__, original.__defaults__, closure)
    for name in ("__kwdefaults__", "__annotations__", "__doc__", "__qualname__", "__module__"):
        setattr(copied, name, getattr(original, name))
    vars(copied).update(vars(original))
    module.forward = MethodType(copied, module)
    if _has_compiled() and not _is_noticed():
        _reset()


def use_earlier_code(module: nn.Module) -> None:
    """Undo `compile_again` on a module without hooks, so that code compiled before them is valid again."""
    found = vars(module).get("forward")
    if found is None:
        return
    known = _is_copy(module, found)
    if known:
        del module.forward
    if not known or (_has_compiled() and not _is_noticed()):
        _reset()


def _is_copy(module: nn.Module, forward: Any) -> bool:
    """True if `forward` is from `compile_again`, or was: a pickled one comes back as the class's own."""
    original = type(module).forward
    return (
        isinstance(forward, MethodType)
        and isinstance(forward.__func__, FunctionType)
        and isinstance(original, FunctionType)
        and forward.__func__.__code__ == original.__code__
        and forward.__func__.__closure__ == original.__closure__
    )


def _has_compiled() -> bool:
    """True if code was compiled in this process, as far as is known."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return frames is not None and bool(getattr(getattr(frames, "input_codes", None), "seen", True))


def _reset() -> None:
    dynamo = sys.modules.get("torch._dynamo")  # if it was never imported, nothing was compiled
    if dynamo is not None:
        dynamo.reset()


class _Probe(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@cache
def _is_noticed() -> bool:
    """True if this torch compiles again after `compile_again`, tried once on a small module."""
    probe, x = _Probe(), torch.ones(1)

    def run(x: Tensor) -> Tensor:
        return probe(x)

    compiled = torch.compile(run, backend="eager")
    try:
        compiled(x)
        probe.register_forward_hook(lambda module, args, output: output + 1)
        vars(probe)["forward"] = MethodType(FunctionType(_Probe.forward.__code__.replace(), globals()), probe)
        return float(compiled(x)) == 3.0
    except Exception:  # any exception of a compiler, also if it must not compile again
        return False
