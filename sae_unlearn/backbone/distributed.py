"""Work that is shared out among processes, as `accelerate launch` and `torchrun` start them.

Every process is given everything, and does its share: of batches numbered 0, 1, 2, ... process r of W runs those with
`n % W == r`. Batches are made before they are shared out, so what is found does not depend on W, up to the rounding of
sums. Without a process group there is one process, which does it all.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sae_unlearn.errors import UnlearnError


class LaunchError(UnlearnError):
    """Another process of the launch is gone."""


def process_count() -> int:
    """Number of processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_mine(number: int) -> bool:
    """Whether the batch of this number is this process's."""
    return number % process_count() == process_index()


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order. All processes have to come here; tensors have to be on the CPU.

    Raises:
        LaunchError: a process ended before it came here.
    """
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise LaunchError(
            f"Another process of this launch has ended or cannot be reached; its own message says why. ({error})"
        ) from error
    return found


def summed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes, in their order, so that each has the same to the last bit."""
    first, *others = gathered(dict(tensors))
    return {name: sum((other[name] for other in others), start=tensor) for name, tensor in first.items()}


def filled(values: Tensor, mine: Sequence[int]) -> Tensor:
    """`values [n, ...]`, of which each process knows the rows `mine`, with the rows of all. They are copied and not
    added up, so each is what the process that worked it out had."""
    for rows, known in gathered((list(mine), values[list(mine)])):
        values[rows] = known
    return values


def join_launch(cpu: bool = False) -> None:
    """Join the process group, where a launcher started several processes and nobody has joined yet.

    Args:
        cpu: the work is done on the CPU, whatever else there is.
    """
    if process_count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=cpu)


@contextmanager
def leaving_launch() -> Iterator[None]:
    """A process group that is joined inside the `with` block is left at its end, also after an error: a process that
    ends without leaving may wait for the others, and they for it."""
    before = process_count()
    try:
        yield
    finally:
        if process_count() > before:
            dist.destroy_process_group()
