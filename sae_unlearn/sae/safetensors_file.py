"""Reading a safetensors file whose header is checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import SAEFormatError


FLOATS = ("F64", "F32", "F16", "BF16")


def read_tensors(path: Path, allowed: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of `path`, on the CPU, in the file's dtypes.

    safetensors itself refuses headers whose offsets, shapes and sizes contradict each other or the file's length, so
    the memory asked for is bounded by the file.

    Args:
        path: the file.
        allowed: the names that may occur; others are refused, since an unknown tensor may change the result.

    Raises:
        SAEFormatError: malformed file, a tensor that is not in `allowed`, or one that is not floating.
    """
    from safetensors import SafetensorError, safe_open  # late: keeps the import of this package light

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            unknown = sorted(set(names) - set(allowed))
            if unknown:
                raise SAEFormatError(
                    f"{path} holds {', '.join(unknown[:8])}; expected only {', '.join(allowed)}: "
                    "this is another kind of SAE, or a transcoder, which cannot be read exactly"
                )
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                if dtype not in FLOATS:
                    raise SAEFormatError(f"{name} in {path} has dtype {dtype}; expected one of {', '.join(FLOATS)}")
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise SAEFormatError(f"{path} is not a valid safetensors file ({error}); download or save it again") from error


def require(tensors: dict[str, torch.Tensor], names: tuple[str, ...], path: Path) -> list[torch.Tensor]:
    """`tensors[name]` for each of `names`; raises SAEFormatError where some are missing."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise SAEFormatError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    return [tensors[name] for name in names]
