"""Reading of NumPy's `.npz` without pickle and without trusting its headers.

Every array's header is checked before memory is allocated, and never more is allocated than the file on disk can hold.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from sae_unlearn.errors import SAEFormatError


# Trained floats hardly compress; an archive that claims to hold more than this many times its own size is a zip bomb.
MAX_EXPANSION = 16
# ... except for small archives: a vector of zeros can be most of the file.
ALWAYS_ALLOWED = 16 << 20
MAX_HEADER = 10_000
CHUNK = 16 << 20
DTYPES = ("float16", "float32", "float64")

# Errors of zipfile and numpy for broken archives and headers (ValueError: numpy's header; EOFError: cut short).
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    RuntimeError,
    OSError,
    SyntaxError,
)

Layout = tuple[np.dtype[Any], tuple[int, ...], bool]  # dtype, shape, Fortran order


def read_arrays(path: Path, allowed: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return the arrays of `path` as CPU tensors, in the file's dtypes.

    Args:
        path (Path): The file.
        allowed (tuple[str, ...]): The array names that may occur; others are refused.

    Raises:
        SAEFormatError: If it is not an npz file, has an unexpected name, a dtype that is not floating (pickle is never
            needed), sizes that contradict each other, or more content than the file can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = check_members(archive.infolist(), path, allowed)
            layouts = {name: read_layout(archive, info, path) for name, info in members.items()}
            return {name: read_array(archive, members[name], *layouts[name], path) for name in members}
    except SAEFormatError:
        raise
    except BROKEN as error:
        raise SAEFormatError(f"{path} is not a valid .npz file ({error}). Download or save it again.") from error


def check_members(infos: list[zipfile.ZipInfo], path: Path, allowed: tuple[str, ...]) -> dict[str, zipfile.ZipInfo]:
    """Return archive members by array name, after checking names and declared sizes."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if info.filename != f"{name}.npy" or name not in allowed:
            raise SAEFormatError(f"{path} holds {info.filename!r}: expected only {', '.join(allowed)}, each as .npy.")
        if name in members:
            raise SAEFormatError(f"{path} holds {info.filename!r} twice: expected each array once.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SAEFormatError(f"{info.filename} in {path} is packed in a way that NumPy never uses. Save it again.")
        members[name] = info
    declared = sum(info.file_size for info in infos)
    limit = max(ALWAYS_ALLOWED, MAX_EXPANSION * path.stat().st_size)
    if declared > limit:
        raise SAEFormatError(
            f"{path} declares {declared} bytes unpacked from {path.stat().st_size}: expected at most {limit}. Use the "
            "published file; this one may be a zip bomb."
        )
    return members


def read_layout(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path
) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Return dtype, shape and Fortran order of one array, checked against its declared size."""
    with archive.open(info) as file:
        return read_header(file, info, path)


def read_header(file: IO[bytes], info: zipfile.ZipInfo, path: Path) -> Layout:
    """Read a `.npy` header (version 1.0, at most 64 kB) and leave `file` at the data."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise SAEFormatError(f"{info.filename} in {path} has .npy version {version}: expected (1, 0).")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER)
    except MemoryError as error:  # from Python's parser, for deeply nested headers
        raise SAEFormatError(f"{info.filename} in {path} has no valid header. Download or save it again.") from error
    if dtype.name not in DTYPES:
        raise SAEFormatError(f"{info.filename} in {path} has dtype {dtype}: expected one of {', '.join(DTYPES)}.")
    if len(shape) > 2 or any(size < 0 for size in shape):
        raise SAEFormatError(f"{info.filename} in {path} has shape {list(shape)}: expected a vector or a matrix.")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if info.file_size != expected:
        raise SAEFormatError(
            f"{info.filename} in {path} has {info.file_size} bytes: expected {expected} for shape {list(shape)} of "
            f"{dtype}. Download or save it again."
        )
    return dtype, shape, fortran


def read_array(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    fortran: bool,
    path: Path,
) -> torch.Tensor:
    """Return the data of one array. At most the bytes that its shape needs are unpacked."""
    data = np.empty(math.prod(shape), dtype)
    view = memoryview(data.view(np.uint8).data)
    with archive.open(info) as file:
        read_header(file, info, path)
        filled = 0
        while filled < len(view):
            count = cast(zipfile.ZipExtFile, file).readinto(view[filled : filled + CHUNK])
            if not count:
                raise SAEFormatError(f"{info.filename} in {path} ends after {filled} of {len(view)} bytes.")
            filled += count
        if file.read(1):  # reading to the end also checks the CRC
            raise SAEFormatError(f"{info.filename} in {path} is longer than its shape {list(shape)}.")
    data = data.astype(dtype.newbyteorder("="), copy=False)
    array = data.reshape(shape[::-1]).T if fortran else data.reshape(shape)
    return torch.from_numpy(np.ascontiguousarray(array))
