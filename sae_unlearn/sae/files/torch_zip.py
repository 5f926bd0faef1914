"""Reading of a `torch.save`d file without unpickling it and without trusting its sizes.

A file of torch >= 1.6 is an uncompressed zip archive: `<root>/data.pkl` describes the tensors (`torch_pickle.py` reads
it), `<root>/data/<key>` holds the numbers. Nothing is compressed, so the file's length bounds the memory.
Format: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, cast

import torch

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.npz import BROKEN
from sae_unlearn.sae.files.torch_pickle import Storage, StoredTensor, parse_pickle
from sae_unlearn.sae.validate import check_names


# Published descriptions are below 2 kB.
MAX_DESCRIPTION = 1 << 20
CHUNK = 16 << 20


def read_state_dict(path: Path, floats: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the entries of a saved state dict, tensors on the CPU in the file's dtypes.

    Args:
        path (Path): The file.
        floats (tuple[str, ...]): Names that may occur and must be floating tensors.
        others (tuple[str, ...], *optional*, defaults to ()): Names that may occur with any value: an integer tensor, a
            number, text.

    Raises:
        SAEFormatError: If it is not such a file, holds more than plain data and tensors, has an unexpected name, a
            weight that is not floating, or sizes that contradict each other.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = check_members(archive.infolist(), path)
            root = root_of(members, path)
            with archive.open(members[f"{root}/data.pkl"]) as file:
                state = parse_pickle(file.read(MAX_DESCRIPTION), str(path))
            check_state(state, floats, others, path)
            storages: dict[str, torch.Tensor] = {}
            for value in state.values():
                if isinstance(value, StoredTensor) and value.storage.key not in storages:
                    storages[value.storage.key] = read_storage(archive, members, root, value.storage, path)
            return {
                name: view(storages[value.storage.key], value, name, path) if isinstance(value, StoredTensor) else value
                for name, value in state.items()
            }
    except SAEFormatError:
        raise
    except BROKEN as error:
        raise SAEFormatError(
            f"{path} is not a file that torch >= 1.6 saved ({error}). Download it again, or load it with a trusted "
            "tool and save its tensors as safetensors."
        ) from error


def check_members(infos: list[zipfile.ZipInfo], path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return members by name. Raise if one is compressed or occurs twice, or they exceed the file."""
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise SAEFormatError(f"{path} holds a member twice. Download or save it again.")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise SAEFormatError(f"{info.filename} in {path} is compressed, unlike files of torch.save. Save it again.")
    declared = sum(info.file_size for info in infos)
    if declared > path.stat().st_size:
        raise SAEFormatError(f"{path} claims to hold {declared} bytes but is {path.stat().st_size} bytes long.")
    return members


def root_of(members: dict[str, zipfile.ZipInfo], path: Path) -> str:
    """Return the archive's only folder. Raise unless it has exactly one description of a small size."""
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise SAEFormatError(f"{path} holds {len(roots)} descriptions of tensors (data.pkl): expected one.")
    size = members[f"{roots[0]}/data.pkl"].file_size
    if size > MAX_DESCRIPTION:
        raise SAEFormatError(f"data.pkl in {path} is {size} bytes: expected at most {MAX_DESCRIPTION} for one SAE.")
    return roots[0]


def check_state(state: Any, floats: tuple[str, ...], others: tuple[str, ...], path: Path) -> None:
    """Raise unless `state` is a dict with only the expected names and floating tensors for `floats`."""
    if not isinstance(state, dict):
        raise SAEFormatError(f"{path} holds a {type(state).__name__}: expected a state dict of tensors.")
    check_names(state, (*floats, *others), path)
    for name in floats:
        value = state.get(name)
        if name in state and not (isinstance(value, StoredTensor) and value.storage.dtype.is_floating_point):
            kind = value.storage.dtype if isinstance(value, StoredTensor) else type(value).__name__
            raise SAEFormatError(f"{name} in {path} is {kind}: expected a floating tensor.")


def read_storage(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], root: str, storage: Storage, path: Path
) -> torch.Tensor:
    """Return the numbers of one storage, flat. Raise unless its length is exactly as declared."""
    order = members.get(f"{root}/byteorder")
    if order is not None and archive.read(order) != b"little":
        raise SAEFormatError(f"{path} was saved on a big-endian machine. Save it again on a little-endian one.")
    info = members.get(f"{root}/data/{storage.key}")
    expected = storage.numel * storage.dtype.itemsize
    if info is None or info.file_size != expected or expected == 0:
        actual = "is missing" if info is None else f"is {info.file_size} bytes long"
        raise SAEFormatError(
            f"data/{storage.key} in {path} {actual}, but {storage.numel} numbers of {storage.dtype} are declared "
            f"({expected} bytes). Download or save it again."
        )
    buffer = bytearray(expected)
    unread = memoryview(buffer)
    with archive.open(info) as file:
        while unread:
            count = cast(zipfile.ZipExtFile, file).readinto(unread[:CHUNK])
            if not count:
                raise SAEFormatError(f"data/{storage.key} in {path} ends {len(unread)} bytes early.")
            unread = unread[count:]
        file.read(1)  # reading to the end checks the CRC
    return torch.frombuffer(buffer, dtype=storage.dtype)


def view(numbers: torch.Tensor, tensor: StoredTensor, name: str, path: Path) -> torch.Tensor:
    """Return the declared view of a storage. Raise if it exceeds the storage or repeats elements."""
    size, stride = tensor.size, tensor.stride
    fits = len(size) == len(stride) <= 2 and 0 < math.prod(size) <= len(numbers)
    fits = fits and tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) < len(numbers)
    if not fits or numbers.dtype != tensor.storage.dtype or len(numbers) != tensor.storage.numel:
        raise SAEFormatError(
            f"{name} in {path} declares shape {list(size[:4])} of {tensor.storage.dtype}, which does not fit its "
            f"{len(numbers)} stored numbers of {numbers.dtype}. Download or save it again."
        )
    return torch.as_strided(numbers, size, stride, tensor.offset)
