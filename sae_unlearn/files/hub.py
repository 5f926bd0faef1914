"""What went wrong with the Hub, in a sentence that names the mend.

The files of a folder here or of a Hub repository.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.untrusted import check_inside, clean_subfolder


def explain_download(error: Exception, repo_id: str, name: str, revision: str | None) -> str:
    """Why the file `name` of a repository could not be had."""
    if isinstance(error, HFValidationError):
        return f"{repo_id} is neither a folder here nor the name of a Hub repository."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{repo_id} is no folder here, and {name} of a Hub repository of that name is not in the local cache while "
            f"the Hub cannot be reached{f' ({_short(error.__cause__)})' if error.__cause__ else ''}."
        )
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, of which it is one
        return f"The Hub repository {repo_id} is gated: ask for access on its page, then log in or pass `token=`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no Hub repository {repo_id} that can be read with this token, nor a folder of that name here. "
            "Check the name; if it is private, log in with `hf auth login` or pass `token=`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"The Hub repository {repo_id} has no revision {revision!r}; name a branch, a tag or a whole commit."
    if isinstance(error, EntryNotFoundError):
        return f"The Hub repository {repo_id} has no {name} at revision {revision or 'main'!r}; is it a guardrail?"
    return f"{name} of {repo_id} could not be had from the Hub: {_short(error)}"


def explain_upload(error: Exception, repo_id: str) -> str:
    """Why a folder could not be uploaded. Commits are atomic: nothing of it is in the repository then."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} cannot be the name of a Hub repository; expected `user/name`."
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub does not let this token write to {repo_id}: log in with `hf auth login`, or pass the `token=` of "
            f"its owner with write access. ({_short(error)})"
        )
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        return f"The Hub refuses the folder that was to go to {repo_id}: {_short(error)}"
    return f"The upload to {repo_id} did not finish, so nothing of it was committed; try again. ({_short(error)})"


def _short(error: BaseException) -> str:
    """The error's name and its words, without the request's dump."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}"


logger = logging.getLogger(__name__)


def fetch_file(source: str | os.PathLike[str], name: str, hub: dict[str, Any]) -> Path:
    """A file of a local folder or a Hub repository, on this machine; `hub` as for `read_config`.

    Raises:
        GuardrailError: it cannot be had, naming the mend.
    """
    hub = dict(hub)
    subfolder = clean_subfolder(hub.pop("subfolder", None))
    revision = hub.get("revision")
    if revision is not None and not isinstance(revision, str):
        raise GuardrailError(f"revision={revision!r} is a {type(revision).__name__}; give a branch, tag or commit.")
    if is_local(source):
        root = Path(source).expanduser()
        folder = root / subfolder
        if hub.get("revision") is not None:
            raise GuardrailError(
                f"revision={hub['revision']!r} was given, but {source} is a local folder; leave it out."
            )
        if not (folder / name).is_file():
            inside = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
            if inside:
                raise GuardrailError(
                    f"{folder} has no {name}, but folders that do; give one as subfolder: {inside[:5]}."
                )
            raise GuardrailError(f"{folder} has no {name}; is it a guardrail's folder?")
        check_inside(folder / name, root)
        return folder / name

    def download(**options: Any) -> Path:
        return Path(hf_hub_download(str(source), name, subfolder=subfolder or None, **hub | options))

    try:
        return download()
    except Exception as error:  # also what the HTTP client raises, whose classes depend on huggingface_hub's version
        if not isinstance(error, (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)):
            with suppress(LocalEntryNotFoundError):
                found = download(local_files_only=True)
                logger.warning("the Hub could not be asked about %s (%s); using the cached copy", source, error)
                return found
        raise GuardrailError(explain_download(error, str(source), name, hub.get("revision"))) from error


def is_local(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a folder here, and so no repository."""
    return Path(source).expanduser().is_dir()


def commit_of(path: Path) -> str | None:
    """The commit in a path of huggingface_hub's cache, `.../models--user--name/snapshots/<commit>/...`."""
    for repository, folder, commit in zip(path.parts, path.parts[1:], path.parts[2:], strict=False):
        if repository.startswith("models--") and folder == "snapshots":
            return commit
    return None
