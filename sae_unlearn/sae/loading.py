"""Reading of an SAE's weights from a local folder, a Hub repository, or a `sae_lens.SAE` in memory.

SAELens is not imported: an SAE in memory is read through its configuration and weights.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sae_unlearn.errors import SAEFormatError, UnlearnError
from sae_unlearn.files.digest import sha256
from sae_unlearn.files.hub import REPO_ID, FileTree, source_name
from sae_unlearn.files.untrusted import clean_subfolder
from sae_unlearn.sae.directory.lookup import find_sae
from sae_unlearn.sae.formats import find_reader, matching_readers
from sae_unlearn.sae.formats.base import SAEFolder, SAEWeights
from sae_unlearn.sae.formats.saelens import TENSORS, fold_saelens
from sae_unlearn.sae.formats.saelens_config import parse_config
from sae_unlearn.sae.validate import check_names


def locate(
    id_or_path: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> FileTree:
    """Return the files of a local folder, or else of a Hub repository.

    Raises:
        FileNotFoundError: If it is neither a folder nor a repository id.
        SAEFormatError: If it is a file.
    """
    tree = FileTree(id_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    if tree.root is None and Path(id_or_path).expanduser().exists():
        raise SAEFormatError(f"{id_or_path} is a file: expected a folder. Pass the folder that holds the SAE.")
    if tree.root is None and not REPO_ID.fullmatch(id_or_path):
        raise FileNotFoundError(
            f"{id_or_path} is neither a local folder nor a Hub repository id such as 'google/gemma-scope-2b-pt-res'. "
            "Pass the folder inside a repository as subfolder=."
        )
    return tree


@dataclass(frozen=True, eq=False)
class StoredSAE:
    """The folded weights of an SAE and its origin.

    Attributes:
        weights (SAEWeights): In the dtype of the file, or in float64 where folding changed them.
        source (dict[str, str | None]): `SparseAutoencoder.source`.
        where (str): The folder or repository, for error messages.
    """

    weights: SAEWeights
    source: dict[str, str | None]
    where: str


def read_pretrained(
    id_or_path: str | os.PathLike[str],
    subfolder: str | None,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> StoredSAE:
    """Read the SAE of a folder or a repository. See `SparseAutoencoder.from_pretrained`."""
    name = source_name(id_or_path)
    subfolder = clean_subfolder(subfolder)
    listed = None if Path(name).expanduser().exists() else find_sae(f"{name}/{subfolder}" if subfolder else name)
    if listed is not None:
        name, subfolder = listed.repository, clean_subfolder(listed.subfolder)
    tree = locate(name, revision, cache_dir, token, local_files_only)
    stored = tree.names()
    where = name if not subfolder else f"{name}/{subfolder}"
    # Formats with one file per layer keep many SAEs in one folder, so `subfolder` may name a file.
    parent = subfolder.rpartition("/")[0] if subfolder in stored else subfolder
    prefix = f"{parent}/" if parent else ""
    names = [file[len(prefix) :] for file in stored if file.startswith(prefix)]
    if parent != subfolder:
        names = [subfolder[len(prefix) :]]
    try:
        reader, files = find_reader(names, where)
    except SAEFormatError as error:
        hint = subfolder_hint(stored, subfolder)
        raise SAEFormatError(f"{error}{hint}") if hint else error from None

    paths = [tree.fetch(prefix + file) for file in files]
    root = Path(*paths[0].parts[: len(paths[0].parts) - len(PurePosixPath(files[0]).parts)])
    label = where if tree.root is None else (Path(name).expanduser().absolute() / subfolder).as_posix()
    weights = reader.read(SAEFolder(root, files, label))
    source = {
        "id": name,
        "revision": tree.commit,
        "subfolder": subfolder or None,
        "architecture": weights.architecture,
        "format": reader.name,
        "sha256": sha256(weights.weights_file),
    }
    if weights.neuronpedia_id is not None:
        source["neuronpedia_id"] = weights.neuronpedia_id
    elif listed is not None and listed.neuronpedia_id is not None:
        source["neuronpedia_id"] = listed.neuronpedia_id
    return StoredSAE(weights, source, where)


def subfolder_hint(stored: Sequence[str], wanted: str) -> str:
    """Return " Did you mean subfolder=...?" with the paths in `stored` that hold SAEs; "" for none.

    It names the three most similar paths, or the first eight if no subfolder was passed.
    """
    below: dict[str, list[str]] = {}
    for name in stored:
        parts = name.split("/")
        for depth in range(len(parts)):
            below.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]))
    folders = [folder for folder, names in below.items() if matching_readers(names)]
    files = [
        name
        for name in stored
        if name.rpartition("/")[0] not in folders and matching_readers([PurePosixPath(name).name])
    ]
    candidates = folders + files
    if not candidates:
        return ""
    close = sorted(candidates, key=in_reading_order)[:8]
    if wanted:
        close = difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.0)
    choices = " or ".join(f"subfolder={choice!r}" if choice else "no subfolder" for choice in close)
    return f" Did you mean {choices}? ({len(candidates)} {'files' if not folders else 'folders'} hold SAEs)"


def in_reading_order(name: str) -> list[tuple[str, int]]:
    """Return a sort key that places "layer2" before "layer10"."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def read_saelens(sae: Any) -> StoredSAE:
    """Read a `sae_lens.SAE` in memory. See `SparseAutoencoder.from_saelens`."""
    where = f"the {type(sae).__name__} given"
    config: Any = getattr(sae, "cfg", None)
    if not callable(getattr(config, "to_dict", None)) or not callable(getattr(sae, "state_dict", None)):
        raise UnlearnError(
            f"sae: expected a sae_lens.SAE with cfg.to_dict() and state_dict(), got {type(sae).__name__}. Use "
            "SparseAutoencoder.from_pretrained for a folder or a repository."
        )
    raw = dict(config.to_dict())
    metadata: Any = raw.get("metadata")
    if hasattr(metadata, "to_dict"):
        raw["metadata"] = metadata.to_dict()
    settings = parse_config(raw, None, f"the cfg of {where}")
    # Copies, so that the two never change each other; on the CPU, which always has float64.
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in sae.state_dict().items()}
    named = [name if t.is_floating_point() else f"{name} of {t.dtype}" for name, t in tensors.items()]
    check_names(named, TENSORS, where)
    weights = fold_saelens(tensors, settings, Path(where), f"the cfg of {where}")
    source: dict[str, str | None] = {"id": None, "architecture": weights.architecture, "format": "saelens"}
    if weights.neuronpedia_id is not None:
        source["neuronpedia_id"] = weights.neuronpedia_id
    return StoredSAE(weights, source, where)
