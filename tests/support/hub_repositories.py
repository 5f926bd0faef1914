"""Repositories as the Hub keeps them: commits of files, and branches and tags that point at commits."""

import hashlib
import json
from dataclasses import dataclass, field


LARGE = (".safetensors", ".bin", ".pt", ".png", ".npz")


class NotFound(Exception):
    """A repository, a revision or a file is not there; `code` is the Hub's name for it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Commit:
    """One commit: its files by path."""

    oid: str
    message: str
    files: dict[str, bytes]
    description: str = ""


@dataclass
class Repository:
    """A model repository with a branch `main`, which begins with an empty commit."""

    repo_id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {})

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag, or a commit's own name means."""
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise NotFound("RevisionNotFound")
        return self.commits[oid]

    def commit(self, branch: str, message: str, files: dict[str, bytes], description: str = "") -> Commit:
        """Move a branch on to a new commit that holds `files`."""
        content = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
        name = json.dumps([self.repo_id, len(self.commits), self.refs.get(branch), message, content])
        made = Commit(hashlib.sha1(name.encode()).hexdigest(), message, dict(files), description)
        self.commits[made.oid] = made
        self.refs[branch] = made.oid
        return made

    def open_pull_request(self, branch: str) -> str:
        """A new reference of a pull request, at the commit of the branch that it is for."""
        number = 1 + sum(ref.startswith("refs/pr/") for ref in self.refs)
        self.refs[f"refs/pr/{number}"] = self.at(branch).oid
        return f"refs/pr/{number}"

    def file(self, revision: str, path: str) -> bytes:
        """One file of a commit."""
        try:
            return self.at(revision).files[path]
        except KeyError:
            raise NotFound("EntryNotFound") from None


def is_large(path: str) -> bool:
    """Whether a file goes to the large file storage."""
    return path.endswith(LARGE)


def blob_id(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
