"""Upload of a saved folder to the Hub as one commit, which deletes files of an earlier save."""

import os
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from sae_unlearn.errors import as_guardrail_error
from sae_unlearn.files.upload import CommitOptions, Read, commit_files
from sae_unlearn.guardrail.storage.saving import earlier_save


# Suffixes of the files of a guardrail or a bundle. Other files are not uploaded.
PUBLISHED = (".md", ".json", ".safetensors", ".png")


@as_guardrail_error()
def commit_folder(api: HfApi, repo_id: str, folder: str | os.PathLike[str], options: CommitOptions) -> CommitInfo:
    """Commit a folder to a repository, and delete files of an earlier save in the same commit.

    Raises:
        GuardrailError: If the Hub refuses it or cannot be reached. Nothing was committed.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*"))}
    files = {name: path for name, path in files.items() if path.is_file() and path.suffix in PUBLISHED}

    def left_over(read: Read) -> Collection[str]:
        earlier = earlier_save(files, read)
        return earlier.entries | earlier.others

    return commit_files(api, repo_id, files, options, left_over)
