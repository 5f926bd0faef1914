"""Work that several processes share, as `accelerate launch` and `torchrun` start them.

Every process gets all data. Process r of W runs the batches n with `n % W == r`. Batches are formed before they are
distributed, so results do not depend on W, up to the rounding of sums. Without a process group, one process runs all.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from sae_unlearn.errors import UnlearnError


T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)


class LaunchError(UnlearnError):
    """Another process of the launch has ended or cannot be reached."""


def _lost(process: str, said: object) -> LaunchError:
    return LaunchError(
        f"{process} of this launch has ended or cannot be reached ({said}). Read that process's own error."
    )


def process_count() -> int:
    """Return the number of processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_mine(number: int) -> bool:
    """Return True if this process runs the batch of this number."""
    return number % process_count() == process_index()


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes, in their order. All must call it, with tensors on the CPU.

    Raises:
        LaunchError: If a process ended before its call.
    """
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise _lost("Another process", error) from error
    return found


def by_first(work: Callable[[], T]) -> T:
    """Return what `work` returns in process 0, in every process. The others wait, for days if need be.

    Args:
        work (Callable): Called in process 0 alone. What it returns is pickled for the others.

    Raises:
        LaunchError: In the others, if it fails in process 0 or that process ends.
    """
    if process_count() == 1:
        return work()
    patient = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    sent: list[Any] = [None, None]  # result, message of an error
    failure: Exception | None = None
    try:
        if process_index() == 0:
            try:
                sent[0] = work()
            except Exception as error:
                failure, sent[1] = error, str(error)
        dist.broadcast_object_list(sent, src=0, group=patient)
    except RuntimeError as error:
        if failure is None:
            raise _lost("Process 0", error) from error
    finally:
        dist.destroy_process_group(patient)
    if failure is not None:
        raise failure
    if sent[1] is not None:
        raise _lost("Process 0", sent[1])
    return sent[0]


def summed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return sums over all processes, in their order, so that all have the same bits."""
    first, *others = gathered(dict(tensors))
    return {name: sum((other[name] for other in others), start=tensor) for name, tensor in first.items()}


def filled(values: Tensor, mine: Sequence[int]) -> Tensor:
    """Return `values [n, ...]` with the rows of all processes; each process has computed the rows `mine`.

    Rows are copied and not summed, so each has the bits of the process that computed it.
    """
    for rows, known in gathered((list(mine), values[list(mine)])):
        values[rows] = known
    return values


def join_launch(cpu: bool = False) -> None:
    """Join the process group if a launcher started several processes and this one has not joined.

    Args:
        cpu (bool, *optional*, defaults to False): True to use the CPU, even if the machine has a GPU.
    """
    if process_count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=cpu)


@contextmanager
def leaving_launch() -> Iterator[None]:
    """Leave a process group that was joined in the block, also after an error.

    A process that ends without leaving may wait for the others, and they for it.
    """
    before = process_count()
    try:
        yield
    finally:
        if process_count() > before:
            dist.destroy_process_group()
