"""Recompilation of a guarded module when its guardrails change, without that of other modules.

Compiled code does not check for later hooks (tested: torch 2.13, `skip_nnmodule_hook_guards`): text would pass a
guardrail unseen. But it checks whether a module that it runs has a `forward` of its own, and which one
(`guard_to_detect_forward_monkeypatching`). So a guarded module gets another `forward` whenever its guardrails change: a
copy of its class's, the same bytecode in another code object. If the module has a `forward` of its own (accelerate's
hooks set one), it gets a new object that calls that one.

Only code that runs the guarded module is compiled again. If this torch does not check it, attaching is refused.
"""

import functools
import sys
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailUnsupported


class CallOfOwn:
    """Call of a module's own `forward`, in a new object, which compiled code notices.

    Args:
        forward (`Callable`): The `forward` of the module, in `__wrapped__`.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


def refuse_unnoticed() -> None:
    """Check that compiled code notices a changed `forward`. Call it before hooks change.

    Raises:
        GuardrailUnsupported: If it is not.
    """
    if _has_compiled() and not _is_noticed():
        raise GuardrailUnsupported(
            f"torch={torch.__version__}: expected compiled code that checks a module's `forward`. Attach guardrails "
            "before code is compiled, or call `torch.compiler.reset()` first."
        )


def compile_again(module: nn.Module) -> None:
    """Have code that runs `module` compiled again at its next call. Call it after its hooks have changed."""
    found, original = vars(module).get("forward"), type(module).forward
    if not isinstance(original, FunctionType) or (found is not None and not _is_copy(module, found)):
        module.forward = CallOfOwn(found.__wrapped__ if isinstance(found, CallOfOwn) else module.forward)
        return
    code, closure = original.__code__.replace(), original.__closure__
    copied = FunctionType(code, original.__globals__, original.__name__, original.__defaults__, closure)
    for name in ("__kwdefaults__", "__annotations__", "__doc__", "__qualname__", "__module__"):
        setattr(copied, name, getattr(original, name))
    vars(copied).update(vars(original))
    module.forward = MethodType(copied, module)


def use_earlier_code(module: nn.Module) -> None:
    """Undo `compile_again` on a module without hooks, so that code compiled before them is valid again."""
    found = vars(module).get("forward")
    if found is None:
        return
    if isinstance(found, CallOfOwn):
        module.forward = found.__wrapped__
    elif _is_copy(module, found):
        del module.forward
    else:  # set while the module was guarded: code that was compiled with it runs the hooks
        module.forward = CallOfOwn(found)
    if _has_compiled() and not _is_noticed():
        warnings.warn(
            f"torch={torch.__version__}: code that was compiled with the guardrail still runs it. Call "
            "`torch.compiler.reset()`.",
            stacklevel=2,
        )


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


class _Probe(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@cache
def _is_noticed() -> bool:
    """True if this torch compiles again after `compile_again`, tried on a module with both forms."""
    probe, x = _Probe(), torch.ones(1)

    def run(x: Tensor) -> Tensor:
        return probe(x)

    compiled = torch.compile(run, backend="eager")
    try:
        compiled(x)
        probe.register_forward_hook(lambda module, args, output: output + 1)
        compile_again(probe)
        once = float(compiled(x))
        vars(probe)["forward"] = CallOfOwn(probe.forward)
        compiled(x)
        probe.register_forward_hook(lambda module, args, output: output + 1)
        compile_again(probe)
        return (once, float(compiled(x))) == (3.0, 4.0)
    except Exception:  # any exception of a compiler, also if it must not compile again
        return False
