"""A saved folder to the Hub, as one commit, in which what an earlier save of ours left goes too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.hub import explain_upload
from sae_unlearn.guardrail.storage.saving import earlier_save


# What a guardrail's folder, or a bundle of them, may hold; nothing else that lies there is published.
PUBLISHED = (".md", ".json", ".safetensors", ".png")


@dataclass(frozen=True)
class CommitOptions:
    """How a folder is committed.

    Attributes:
        message, description: of the commit.
        revision: the branch, made if it is not there; None for "main".
        create_pr: open a pull request with the commit; "main" stays as it is.

    Raises:
        GuardrailError: from `__post_init__`, for a pull request to another branch than "main".
    """

    message: str
    description: str | None
    revision: str | None
    create_pr: bool

    def __post_init__(self) -> None:
        if self.create_pr and self.revision not in (None, "main"):
            raise GuardrailError(
                f"create_pr=True opens a pull request to 'main', but revision={self.revision!r} was given; leave one "
                "of them out."
            )


def make_repository(api: HfApi, repo_id: str, private: bool | None) -> str:
    """Make the repository if it is not there, and return its id as the Hub has it: with the user's name.

    Raises:
        GuardrailError: the Hub refused it or could not be reached.
    """
    with _explained(repo_id):
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id


def commit_folder(api: HfApi, repo_id: str, folder: str | os.PathLike[str], options: CommitOptions) -> CommitInfo:
    """Commit a folder to a repository, and in the same commit take away what is ours of an earlier save and not in it.

    Raises:
        GuardrailError: the Hub refused it or could not be reached; nothing was committed.
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
        left = there & (earlier.in_force | earlier.beside)
        # and not `upload_folder`, which makes several commits of what takes long
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
