"""How many kernels a call launches.

On a GPU those that the profiler saw run. On the CPU the operators that reach a kernel: what torch dispatches, less
views and allocations, which compute nothing.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


NO_KERNEL = {"aten._unsafe_view", "aten.empty", "aten.empty_like", "aten.new_empty", "aten.lift_fresh", "aten.detach"}
WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize")


class _Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _is_view(func) and func.overloadpacket.__str__() not in NO_KERNEL and not _is_empty(out):
            self.found[str(func.overloadpacket)] += 1
        return out


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _is_empty(out: Any) -> bool:
    return isinstance(out, torch.Tensor) and out.numel() == 0


def kernels(call: Callable[[], Any], device: str = "cpu") -> Counter[str]:
    """Kernels of one call by name."""
    if device == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as run:
            call()
            torch.cuda.synchronize()
        return Counter(event.name for event in run.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    with _Dispatched() as seen:
        call()
    return seen.found


def waits(call: Callable[[], Any]) -> Counter[str]:
    """Events of one call that make the host wait for the device, or would if there were one."""
    with profile(activities=[ProfilerActivity.CPU]) as run:
        call()
    return Counter(event.name for event in run.events() if event.name in WAITS)
