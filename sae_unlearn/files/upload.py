"""Upload of files to the Hub as one commit."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.hub import explain_upload


Read = Callable[[str], Path | None]


@dataclass(frozen=True)
class CommitOptions:
    """Options of a commit.

    Attributes:
        message (str): Message of the commit.
        description (str or None): Description of the commit.
        revision (str or None): The branch, created if it does not exist; None for "main".
        create_pr (bool): True to open a pull request with the commit and leave "main" unchanged.

    Raises:
        UnlearnError: If a pull request is to another branch than "main".
    """

    message: str
    description: str | None
    revision: str | None
    create_pr: bool

    def __post_init__(self) -> None:
        if self.create_pr and self.revision not in (None, "main"):
            raise UnlearnError(
                f"revision={self.revision!r}: expected None or 'main' with create_pr=True, which opens a pull request "
                "to 'main'."
            )


def make_repository(api: HfApi, repo_id: str, private: bool | None) -> str:
    """Create the repository if it does not exist, and return its full id with the user's name.

    Raises:
        UnlearnError: If the Hub refuses it or cannot be reached.
    """
    with _explained(repo_id):
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id


def commit_files(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path],
    options: CommitOptions,
    left_over: Callable[[Read], Collection[str]] | None = None,
) -> CommitInfo:
    """Commit files to a repository, and delete others in the same commit.

    Args:
        api (HfApi): The Hub.
        repo_id (str): The repository.
        files (mapping): From paths in the repository to files on this machine.
        options (CommitOptions): Message and branch.
        left_over (callable, *optional*): Returns paths to delete if they exist. It gets a function from a path in the
            repository to its file on this machine, or None if it does not exist.

    Returns:
        CommitInfo: As from `huggingface_hub`.

    Raises:
        UnlearnError: If the Hub refuses it or cannot be reached. Nothing was committed.
    """
    revision = options.revision
    with _explained(repo_id):
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        deleted = set[str]()
        if left_over is not None:
            there = set(api.list_repo_files(repo_id, revision=revision))

            def read(path: str) -> Path | None:
                return Path(api.hf_hub_download(repo_id, path, revision=revision)) if path in there else None

            deleted = there & set(left_over(read))
        # not `upload_folder`, which splits a long upload into several commits
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, os.fspath(path)) for name, path in files.items()),
                *(CommitOperationDelete(name, is_folder=False) for name in sorted(deleted)),
            ],
            commit_message=options.message,
            commit_description=options.description,
            revision=revision,
            create_pr=options.create_pr,
        )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # also what the HTTP client raises, whose classes depend on huggingface_hub's version
        raise UnlearnError(explain_upload(error, repo_id)) from error
