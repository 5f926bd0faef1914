"""`FileTree`, the files of a local folder or Hub repository, and explanations of the Hub's errors."""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.untrusted import check_inside, check_regular


def explain_download(error: Exception, repo_id: str, name: str, revision: str | None) -> str:
    """Return the reason why the file `name` of a repository could not be downloaded, and the fix."""
    if isinstance(error, HFValidationError):
        return f"{repo_id} is neither a folder here nor the name of a Hub repository."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{repo_id} is not a folder here; as a Hub repository, its {name} is not cached and the Hub cannot be "
            f"reached{f' ({_short(error.__cause__)})' if error.__cause__ else ''}."
        )
    if isinstance(error, GatedRepoError):  # its subclass RepositoryNotFoundError comes below
        return f"The Hub repository {repo_id} is gated: ask for access on its page, then log in or pass `token=`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo_id} is neither a folder here nor a Hub repository that this token can read. Check the name; for a "
            "private one, log in with `hf auth login` or pass `token=`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"The Hub repository {repo_id} has no revision {revision!r}; pass a branch, a tag or a full commit."
    if isinstance(error, EntryNotFoundError):
        return f"The Hub repository {repo_id} has no {name} at revision {revision or 'main'!r}; is it a guardrail?"
    return f"Could not download {name} from {repo_id}: {_short(error)}"


def explain_upload(error: Exception, repo_id: str) -> str:
    """Return the reason why a folder could not be uploaded, and the fix.

    Commits are atomic, so nothing of the folder is in the repository then.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} cannot be the name of a Hub repository; expected `user/name`."
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub does not let this token write to {repo_id}: log in with `hf auth login`, or pass a `token=` with "
            f"write access. ({_short(error)})"
        )
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        return f"The Hub refuses the folder for {repo_id}: {_short(error)}"
    return f"The upload to {repo_id} did not finish and nothing was committed; try again. ({_short(error)})"


def _short(error: BaseException) -> str:
    """Return the error's class and the start of its message, without the dump of the request."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}"


logger = logging.getLogger(__name__)

MAX_FILES = 50_000  # largest number listed in a local folder: a wrong path such as "/" must end soon
REPO_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)


def source_name(source: str | os.PathLike[str]) -> str:
    """Return a folder or Hub id as text.

    Raises:
        UnlearnError: If it is neither a string nor a path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise UnlearnError(
            f"source={source!r:.60}: expected a folder or a Hub id, got {type(source).__name__}. Pass a text."
        )
    return os.fspath(source)


class FileTree:
    """The files of a local folder, or of a Hub repository at one commit.

    The source is resolved once, here: an existing folder is local, everything else is a repository. The first file
    that is fetched, or the list of files, fixes the commit, and all later files are of that commit.

    Attributes:
        source (str): The folder or the repository, as passed.
        revision (str or None): The branch, tag or commit that was passed.
        root (Path or None): The local folder. None for a repository.
        commit (str or None): The commit of a repository. None for a folder, and before anything was fetched or listed.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        dataset: bool = False,
    ) -> None:
        """Resolve the source. Nothing is read, and the Hub is not asked yet.

        Args:
            source (str or PathLike): A local folder or the id of a Hub repository.
            revision (str, *optional*): Branch, tag or commit of the repository. Defaults to its main branch.
            token (str or bool, *optional*): As in `huggingface_hub`.
            cache_dir (str or PathLike, *optional*): The Hub's cache. Defaults to that of `huggingface_hub`.
            local_files_only (bool, *optional*, defaults to False): Read the cache and do not ask the Hub.
            dataset (bool, *optional*, defaults to False): The repository is one of the Hub's data sets, not a model.

        Raises:
            UnlearnError: If `source` or `revision` is not a text, or `revision` is given for a local folder.
        """
        if revision is not None and not isinstance(revision, str):
            raise UnlearnError(f"revision={revision!r}: expected the name of a branch, tag or commit as text.")
        self.source, self.revision = source_name(source), revision
        path = Path(self.source).expanduser()
        self.root = path if path.is_dir() else None
        if self.root is not None and revision is not None:
            raise UnlearnError(f"revision={revision!r}: expected None for the local folder {source}.")
        self.commit: str | None = None
        self._token, self._cache_dir, self._cached_only = token, cache_dir, local_files_only
        self._kind = "dataset" if dataset else "model"
        self._cache_knows = False  # which commit the revision is

    def check_source(self) -> None:
        """Raise unless the source is a folder or can be the id of a repository. The Hub is not asked.

        Raises:
            FileNotFoundError: If it is neither.
        """
        if self.root is None and (Path(self.source).expanduser().exists() or not REPO_ID.fullmatch(self.source)):
            raise FileNotFoundError(
                f"source={self.source!r}: expected a folder, or the id of a Hub repository such as 'user/name'."
            )

    def fetch(self, name: str) -> Path:
        """Return a file's path on this machine, downloaded if need be.

        Args:
            name (str): The file's path below the root, with "/".

        Raises:
            UnlearnError: If the file of a local folder is not a regular file, or a link out of the folder.
            huggingface_hub.errors.*: If the repository, the revision or the file is missing or cannot be reached.
        """
        if self.root is not None:
            check_inside(self.root / name, self.root)
            check_regular(self.root / name)
            return self.root / name
        # The first file is requested by branch or tag, so that the cache stores which commit that is.
        path = self._download(name, (self._cache_knows and self.commit) or self.revision)
        found = _commit_of(path)
        if self.commit is None:
            self.commit = found
        elif found != self.commit:  # the branch moved since its files were listed
            path = self._download(name, self.commit)
        self._cache_knows = True
        return path

    def names(self) -> tuple[str, ...]:
        """Return the path of every file below the root, with "/", without a local folder's hidden folders.

        If the Hub cannot list the repository now, these are the files that the cache holds.

        Raises:
            UnlearnError: If a local folder holds more than `MAX_FILES` files.
            huggingface_hub.errors.*: If the repository or the revision is missing or cannot be reached.
        """
        if self.root is not None:
            return _list_files(self.root)
        wanted = self.commit or self.revision
        if self._cached_only or constants.HF_HUB_OFFLINE:
            found = self._cached(wanted)
            if found is None:
                raise LocalEntryNotFoundError(
                    f"{self.source} at revision {wanted or 'main'} is neither a folder here nor in the cache, and "
                    "local_files_only or HF_HUB_OFFLINE forbids a download. Download the repository first."
                )
            return found
        try:
            info = HfApi(token=self._token).repo_info(self.source, revision=wanted, repo_type=self._kind)
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception as error:  # no connection: its class depends on huggingface_hub's version
            found = self._cached(wanted)
            if found is None:
                raise
            logger.warning("The Hub could not list %s (%s); using the cached copy.", self.source, error)
            return found
        self.commit = info.sha
        return tuple(sibling.rfilename for sibling in info.siblings or ())

    def _download(self, name: str, revision: str | None) -> Path:
        def download(cached_only: bool) -> Path:
            found = hf_hub_download(
                self.source,
                name,
                repo_type=self._kind,
                revision=revision,
                cache_dir=self._cache_dir,
                token=self._token,
                local_files_only=cached_only,
            )
            return Path(found)

        try:
            return download(self._cached_only)
        except LocalEntryNotFoundError:
            self._cached_only = True  # the Hub cannot be reached: do not wait for it again
            raise
        except (
            Exception
        ) as error:  # also what the HTTP client raises, whose classes depend on huggingface_hub's version
            if not isinstance(error, _HUB_ERRORS):
                with suppress(LocalEntryNotFoundError):
                    path = download(True)
                    logger.warning("The Hub could not send %s (%s); using the cached copy.", name, error)
                    return path
            raise

    def _cached(self, revision: str | None) -> tuple[str, ...] | None:
        """Return the cached files of the repository at `revision` and set its commit; None if there are none.

        Layout: `models--org--name/refs/<branch or tag>` holds a commit, `snapshots/<commit>/` links to the files, and
        `datasets--org--name` is alike; see
        https://huggingface.co/docs/huggingface_hub/guides/manage-cache
        """
        cache = Path(self._cache_dir or constants.HF_HUB_CACHE).expanduser()
        storage = cache / (f"{self._kind}s--" + self.source.replace("/", "--"))
        commit = revision or "main"
        if not _COMMIT.fullmatch(commit):
            ref = storage / "refs" / commit
            if ".." in Path(commit).parts or not ref.is_file():
                return None
            commit = ref.read_text(encoding="utf-8").strip()
        snapshot = storage / "snapshots" / commit
        if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
            return None
        self.commit, self._cache_knows = commit, True
        return _list_files(snapshot)


def _list_files(root: Path) -> tuple[str, ...]:
    names: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names.extend((Path(folder) / name).relative_to(root).as_posix() for name in sorted(files))
        if len(names) > MAX_FILES:
            raise UnlearnError(f"{root} holds more than {MAX_FILES} files. Pass the folder of one adapter or SAE.")
    return tuple(names)


def _commit_of(path: Path) -> str | None:
    """Return the commit in a path of the Hub's cache, `.../models--user--name/snapshots/<commit>/...`."""
    for repository, folder, commit in zip(path.parts, path.parts[1:], path.parts[2:], strict=False):
        if repository.startswith(("models--", "datasets--")) and folder == "snapshots":
            return commit
    return None
