"""What went wrong with the Hub, in a sentence that names the mend."""

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


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
