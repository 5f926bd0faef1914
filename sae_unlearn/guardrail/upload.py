"""A folder to the Hub, as one commit."""

import os

from huggingface_hub import CommitInfo, HfApi

from sae_unlearn.guardrail.errors import GuardrailError
from sae_unlearn.hub_errors import explain_upload


# What a guardrail's folder, or a bundle of them, may hold; nothing else that lies there is published.
PUBLISHED = ["*.md", "*.json", "*.safetensors", "*.png"]


def upload_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    commit_message: str,
    revision: str | None,
) -> CommitInfo:
    """Make the repository if it is not there, and commit the folder to it.

    Args:
        revision: the branch, made if it is not there; None for "main".

    Raises:
        GuardrailError: the Hub refused it or could not be reached; nothing was committed.
    """
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=os.fspath(folder),
            commit_message=commit_message,
            revision=revision,
            allow_patterns=PUBLISHED,
        )
    except Exception as error:  # also what the HTTP client raises, whose classes depend on huggingface_hub's version
        raise GuardrailError(explain_upload(error, repo_id)) from error
