"""Upload of a saved folder to the Hub as one commit, which deletes files of an earlier save."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.hub import explain_upload
from sae_unlearn.guardrail.storage.saving import earlier_save


# Suffixes of the files of a guardrail or a bundle. Other files are not uploaded.
PUBLISHED = (".md", ".json", ".safetensors", ".png")


@dataclass(frozen=True)
class CommitOptions:
    """Options of a commit.

    Attributes:
        message (str): Message of the commit.
        description (str or None): Description of the commit.
        revision (str or None): The branch, created if it does not exist; None for "main".
        create_pr (bool): True to open a pull request with the commit and leave "main" unchanged.

    Raises:
        GuardrailError: If a pull request is to another branch than "main".
    """

    message: str
    description: str | None
    revision: str | None
    create_pr: bool

    def __post_init__(self) -> None:
        if self.create_pr and self.revision not in (None, "main"):
            raise GuardrailError(
                f"revision={self.revision!r}: expected None or 'main' with create_pr=True, which opens a pull request "
                "to 'main'."
            )


def make_repository(api: HfApi, repo_id: str, private: bool | None) -> str:
    """Create the repository if it does not exist, and return its full id with the user's name.

    Raises:
        GuardrailError: If the Hub refuses it or cannot be reached.
    """
    with _explained(repo_id):
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id


def commit_folder(api: HfApi, repo_id: str, folder: str | os.PathLike[str], options: CommitOptions) -> CommitInfo:
    """Commit a folder to a repository, and delete files of an earlier save in the same commit.

    Raises:
        GuardrailError: If the Hub refuses it or cannot be reached. Nothing was committed.
    """
    revision = options.revision
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*"))}
    files = {name: path for name, path in files.items() if path.is_file() and path.suffix in PUBLISHED}
    with _explained(repo_id):
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, revision=revision))

        def old(path: str) -> Path | None:
            return Path(api.hf_hub_download(repo_id, path, revision=revision)) if path in there else None

        earlier = earlier_save(files, old)
        left = there & (earlier.entries | earlier.others)
        # not `upload_folder`, which splits a long upload into several commits
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, os.fspath(path)) for name, path in files.items()),
                *(CommitOperationDelete(name, is_folder=False) for name in sorted(left)),
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
        raise GuardrailError(explain_upload(error, repo_id)) from error
