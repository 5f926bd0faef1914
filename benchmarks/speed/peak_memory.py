"""The peak of memory since a moment: of the device where there is one, else of the process.

`getrusage` tells the peak since the process began, which is that of loading the model. Linux lets a process forget it
(`/proc/self/clear_refs`); elsewhere the peak since the beginning is all that can be had.
"""

import resource
import sys
from pathlib import Path

import torch


def forget_peak() -> None:
    """What comes after is counted from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The largest memory since `forget_peak`, what was there already included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
