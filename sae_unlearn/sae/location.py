"""Where an SAE lies: a local folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sae_unlearn.errors import UnlearnError
from sae_unlearn.paths import check_inside
from sae_unlearn.regular_file import check_regular
from sae_unlearn.sae.errors import SAEFormatError


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
