"""The files of a folder here or of a Hub repository."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from sae_unlearn.files.hub import explain_download
from sae_unlearn.guardrail.errors import GuardrailError
from sae_unlearn.paths import check_inside, clean_subfolder


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
