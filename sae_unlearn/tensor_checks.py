"""Check of tensors that belong together. It is apart from `checks`, which loads no torch."""

from typing import Any

from torch import Tensor

from sae_unlearn.errors import UnlearnError


def check_tensors(dimensions: int, **tensors: Any) -> None:
    """Raise unless all are tensors of `dimensions` axes whose sizes agree beyond the first axis.

    Raises:
        UnlearnError: If one is not a tensor, has other dimensions, or the sizes differ.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
            what = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UnlearnError(f"{name}: expected a tensor of {dimensions} dimensions, got {what}.")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({tuple(shape[1:]) for shape in shapes.values()}) > 1:
        raise UnlearnError(f"The shapes {shapes} differ: expected equal sizes beyond the first dimension.")
