"""Read the weights of an SAE from a local folder, a Hub repository, or a `sae_lens.SAE` in memory.

SAELens is not imported: an SAE in memory is read by its configuration and weights.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sae_unlearn.errors import SAEFormatError, UnlearnError
from sae_unlearn.files.untrusted import check_inside, check_regular, clean_subfolder
from sae_unlearn.sae.formats import find_reader, matching_readers
from sae_unlearn.sae.formats.base import SAEFolder, SAEWeights
from sae_unlearn.sae.formats.saelens import TENSORS, fold_saelens
from sae_unlearn.sae.formats.saelens_config import parse_config
from sae_unlearn.sae.validate import check_names


logger = logging.getLogger(__name__)

# Files listed of a local folder at most: a wrong path such as "/" must end soon.
MAX_FILES = 50_000
REPO_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Location:
    """A tree of files that can be listed and fetched.

    Attributes:
        names: every file's path below the root, with "/".
        revision: the commit, for a repository; None for a local folder.
        fetch: puts one of `names` on this machine and returns its path.
    """

    names: tuple[str, ...]
    revision: str | None
    fetch: Callable[[str], Path]


def locate(
    id_or_path: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> Location:
    """The files of a local folder, or else of a Hub repository at one commit.

    Raises:
        FileNotFoundError: neither a folder nor a repository id.
        huggingface_hub.errors.*: the Hub's own errors (no such repository, no access, not in the cache).
    """
    path = Path(id_or_path).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UnlearnError(f"revision={revision!r} was given, but {id_or_path} is a local folder; leave it out")

        def inside(name: str) -> Path:
            check_inside(path / name, path)
            check_regular(path / name)
            return path / name

        return Location(list_files(path), None, inside)
    if path.exists():
        raise SAEFormatError(f"{id_or_path} is a file; pass the folder that holds the SAE")
    if not REPO_ID.fullmatch(id_or_path):
        raise FileNotFoundError(
            f"{id_or_path} is no folder on this machine and no Hub repository id; expected a path, or an id such as "
            "'google/gemma-scope-2b-pt-res' (the folder inside it goes into subfolder=)"
        )
    return locate_repository(id_or_path, revision, cache_dir, token, local_files_only)


def list_files(root: Path) -> tuple[str, ...]:
    """Every file below `root`, relative, with "/"; hidden folders are left out."""
    names: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names.extend((Path(folder) / name).relative_to(root).as_posix() for name in sorted(files))
        if len(names) > MAX_FILES:
            raise SAEFormatError(f"{root} holds more than {MAX_FILES} files; pass the folder of one SAE")
    return tuple(names)


def locate_repository(
    repo_id: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> Location:
    """A repository at the commit that `revision` is now; the cached copy where the Hub cannot be asked."""
    import huggingface_hub  # late: not needed for local folders
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not (local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE):
        try:
            info = huggingface_hub.HfApi(token=token).model_info(repo_id, revision=revision)
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception as error:  # no connection: which class says so depends on huggingface_hub's version
            cached = cached_repository(repo_id, revision, cache_dir)
            if cached is None:
                raise
            logger.warning("the Hub could not be asked about %s (%s); using the cached copy", repo_id, error)
            return cached
        commit = info.sha

        def fetch(name: str) -> Path:
            # Asked for by its branch or tag, so that the cache learns which commit that is and serves it offline.
            for wanted in (revision, commit):
                path = huggingface_hub.hf_hub_download(repo_id, name, revision=wanted, cache_dir=cache_dir, token=token)
                if commit in Path(path).parts:
                    break  # else the branch moved since it was listed
            return Path(path)

        return Location(tuple(sibling.rfilename for sibling in info.siblings or ()), commit, fetch)

    cached = cached_repository(repo_id, revision, cache_dir)
    if cached is None:
        raise huggingface_hub.errors.LocalEntryNotFoundError(
            f"{repo_id} at revision {revision or 'main'} is neither a folder here nor in the cache, and "
            "local_files_only (or HF_HUB_OFFLINE) forbids a download; allow it, or download the repository first"
        )
    return cached


def cached_repository(repo_id: str, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> Location | None:
    """What the Hub's cache holds of a repository at `revision`, or None.

    Layout: `models--org--name/refs/<branch or tag>` holds a commit, `snapshots/<commit>/` links to the files; see
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    import huggingface_hub

    cache = Path(cache_dir or huggingface_hub.constants.HF_HUB_CACHE).expanduser()
    storage = cache / ("models--" + repo_id.replace("/", "--"))
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        ref = storage / "refs" / commit
        if ".." in Path(commit).parts or not ref.is_file():
            return None
        commit = ref.read_text(encoding="utf-8").strip()
    snapshot = storage / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    return Location(list_files(snapshot), commit, lambda name: snapshot / name)


@dataclass(frozen=True, eq=False)
class StoredSAE:
    """The folded weights of an SAE and its origin.

    Attributes:
        weights: in the dtype of the file, or in float64 where folding changed them.
        source: `SparseAutoencoder.source`.
        where: the folder or repository, for error messages.
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
    """Read the SAE of a folder or a repository; see `SparseAutoencoder.from_pretrained` for arguments and errors."""
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
    if weights.neuronpedia_id is not None:
        source["neuronpedia_id"] = weights.neuronpedia_id
    return StoredSAE(weights, source, where)


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


def read_saelens(sae: Any) -> StoredSAE:
    """Read a `sae_lens.SAE` in memory; see `SparseAutoencoder.from_saelens` for arguments and errors."""
    where = f"the {type(sae).__name__} given"
    config: Any = getattr(sae, "cfg", None)
    if not callable(getattr(config, "to_dict", None)) or not callable(getattr(sae, "state_dict", None)):
        raise TypeError(
            f"expected a sae_lens.SAE, with cfg.to_dict() and state_dict(), got {type(sae).__name__}; "
            "for a folder or a repository use SparseAutoencoder.from_pretrained"
        )
    raw = dict(config.to_dict())
    metadata: Any = raw.get("metadata")
    if hasattr(metadata, "to_dict"):
        raw["metadata"] = metadata.to_dict()
    settings = parse_config(raw, None, f"the cfg of {where}")
    # Copies, so that the two never change each other; on the CPU, where float64 is always there.
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in sae.state_dict().items()}
    named = [name if t.is_floating_point() else f"{name} of {t.dtype}" for name, t in tensors.items()]
    check_names(named, TENSORS, where)
    weights = fold_saelens(tensors, settings, Path(where), f"the cfg of {where}")
    source: dict[str, str | None] = {"id": None, "architecture": weights.architecture, "format": "saelens"}
    if weights.neuronpedia_id is not None:
        source["neuronpedia_id"] = weights.neuronpedia_id
    return StoredSAE(weights, source, where)
