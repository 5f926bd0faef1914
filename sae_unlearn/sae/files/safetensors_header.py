"""Reading of a safetensors file after a check of its header."""

from __future__ import annotations

from pathlib import Path

import torch

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.validate import check_names


FLOATS = ("F64", "F32", "F16", "BF16")


def read_tensors(path: Path, allowed: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Return the tensors of `path`, on the CPU, in the file's dtypes.

    safetensors refuses headers whose offsets, shapes and sizes contradict each other or the file's length, so the
    file's size bounds the memory.

    Args:
        path (Path): The file.
        allowed (tuple[str, ...]): The names of weights that may occur; unknown ones are refused, since they may change
            the result.
        others (tuple[str, ...], *optional*, defaults to ()): Names that may occur and may have any dtype, such as an
            integer k.

    Raises:
        SAEFormatError: If the file is malformed, has an unexpected tensor, or a weight that is not floating.
    """
    from safetensors import SafetensorError, safe_open  # late: keeps the import of this package light

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            check_names(names, (*allowed, *others), path)
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                if dtype not in FLOATS and name not in others:
                    raise SAEFormatError(f"{name} in {path} has dtype {dtype}: expected one of {', '.join(FLOATS)}.")
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise SAEFormatError(f"{path} is not a valid safetensors file ({error}). Download or save it again.") from error
