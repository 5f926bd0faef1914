"""From a folder or a repository to a `SparseAutoencoder`."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.paths import clean_subfolder
from sae_unlearn.sae.errors import SAEFormatError
from sae_unlearn.sae.folder import SAEFolder
from sae_unlearn.sae.formats import find_reader, matching_readers
from sae_unlearn.sae.location import Location, locate
from sae_unlearn.sae.weights import SAEWeights


if TYPE_CHECKING:
    from sae_unlearn.sae.autoencoder import SparseAutoencoder


def load_pretrained(
    cls: type[SparseAutoencoder],
    id_or_path: str | os.PathLike[str],
    subfolder: str | None,
    revision: str | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> SparseAutoencoder:
    """Does the work of `SparseAutoencoder.from_pretrained`; arguments and errors are described there."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnlearnError(f"dtype={dtype!r}; expected a floating torch.dtype such as torch.float32")
    name = os.fspath(id_or_path)
    subfolder = clean_subfolder(subfolder)
    location = locate(name, revision, cache_dir, token, local_files_only)
    where = name if not subfolder else f"{name}/{subfolder}"
    # Formats with one file per layer keep many SAEs in one folder; there, the file is the choice.
    parent = subfolder.rpartition("/")[0] if subfolder in location.names else subfolder
    prefix = f"{parent}/" if parent else ""
    names = [file[len(prefix) :] for file in location.names if file.startswith(prefix)]
    if parent != subfolder:
        names = [subfolder[len(prefix) :]]
    try:
        reader, files = find_reader(names, where)
    except SAEFormatError as error:
        hint = subfolder_hint(location, subfolder)
        raise SAEFormatError(f"{error}{hint}") if hint else error from None

    paths = [location.fetch(prefix + file) for file in files]
    root = Path(*paths[0].parts[: len(paths[0].parts) - len(PurePosixPath(files[0]).parts)])
    label = where if location.revision else (Path(name).expanduser().absolute() / subfolder).as_posix()
    weights = reader.read(SAEFolder(root, files, label))
    source = {
        "id": name,
        "revision": location.revision,
        "subfolder": subfolder or None,
        "architecture": weights.architecture,
        "format": reader.name,
        "sha256": sha256_of(weights.weights_file),
    }
    return build(cls, weights, source, where, device, dtype)


def build(
    cls: type[SparseAutoencoder],
    weights: SAEWeights,
    source: dict[str, str | None],
    where: str,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> SparseAutoencoder:
    """Rounds the folded weights to `dtype`, once, and checks them."""

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).to(device)

    if weights.neuronpedia_id is not None:
        source = source | {"neuronpedia_id": weights.neuronpedia_id}
    try:
        return cls(
            placed(weights.W_enc),
            placed(weights.b_enc),
            placed(weights.W_dec),
            placed(weights.b_dec),
            architecture=weights.architecture,
            threshold=None if weights.threshold is None else placed(weights.threshold),
            k=weights.k,
            layer=weights.layer,
            source=source,
            input_norm=weights.input_norm,
        )
    except ValueError as error:
        raise SAEFormatError(f"{where}: {error}") from error


def subfolder_hint(location: Location, wanted: str) -> str:
    """' Did you mean subfolder=...?' where other folders or files of `location` hold SAEs.

    The three most similar names where something was asked for, else the first eight.
    """
    below: dict[str, list[str]] = {}
    for name in location.names:
        parts = name.split("/")
        for depth in range(len(parts)):
            below.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]))
    folders = [folder for folder, names in below.items() if matching_readers(names)]
    files = [
        name
        for name in location.names
        if name.rpartition("/")[0] not in folders and matching_readers([PurePosixPath(name).name])
    ]
    candidates = folders + files
    if not candidates:
        return ""
    close = sorted(candidates, key=in_reading_order)[:8]
    if wanted:
        close = difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.0)
    choices = " or ".join(f"subfolder={choice!r}" if choice else "no subfolder" for choice in close)
    return f". Did you mean {choices}? ({len(candidates)} {'files' if not folders else 'folders'} hold SAEs)"


def in_reading_order(name: str) -> list[tuple[str, int]]:
    """A sorting key with which "layer2" comes before "layer10"."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
