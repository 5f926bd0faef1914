"""`FileTree`: a folder or a repository, resolved once; and the digest of a file."""

import hashlib

import pytest
from hub_repositories import Repository
from hub_requests import OWNER
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.digest import sha256
from sae_unlearn.files.hub import FileTree


REPO = "me/files"


def push(*names, content):
    api = HfApi(token=OWNER)
    api.create_repo(REPO, exist_ok=True)
    oids = [api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO).oid for name in names]
    return oids[-1]


def test_files_of_a_repository_are_of_the_commit_of_the_first_one(stand_in):
    old = push("a.json", "b.json", content=b"old")
    tree = FileTree(REPO)
    assert (tree.root, tree.commit) == (None, None)
    assert tree.fetch("a.json").read_bytes() == b"old"
    push("a.json", "b.json", content=b"new")
    assert tree.fetch("b.json").read_bytes() == b"old"
    assert tree.commit == old
    assert FileTree(REPO).fetch("b.json").read_bytes() == b"new"


def test_files_are_of_the_commit_that_was_listed(stand_in):
    old = push("a.json", "b.json", content=b"old")
    tree = FileTree(REPO)
    assert {"a.json", "b.json"} <= set(tree.names())
    push("a.json", "b.json", content=b"new")
    assert [tree.fetch(name).read_bytes() for name in ("b.json", "a.json")] == [b"old", b"old"]
    assert tree.commit == old


def test_a_listed_repository_is_there_without_the_hub(stand_in):
    commit = push("a.json", content=b"old")
    FileTree(REPO).fetch("a.json")
    stand_in.stop()
    for tree in (FileTree(REPO), FileTree(REPO, local_files_only=True)):
        assert tree.names() == ("a.json",)
        assert tree.fetch("a.json").read_bytes() == b"old"
        assert tree.commit == commit


def test_a_local_folder_has_no_commit_and_no_way_out(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.json").write_bytes(b"{}")
    (tmp_path / "outside").write_bytes(b"{}")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    tree = FileTree(tmp_path / "tree")
    assert tree.names() == ("a.json", "link")
    assert tree.fetch("a.json") == tmp_path / "tree" / "a.json"
    assert tree.commit is None
    with pytest.raises(UnlearnError, match="link"):
        tree.fetch("link")
    with pytest.raises(UnlearnError, match="revision='main'"):
        FileTree(tmp_path / "tree", revision="main")


def test_a_file_and_its_bytes_have_one_digest(tmp_path):
    (tmp_path / "file").write_bytes(b"some bytes")
    assert sha256(tmp_path / "file") == sha256(b"some bytes") == hashlib.sha256(b"some bytes").hexdigest()


def test_files_of_a_data_set_are_of_one_commit_and_stay_in_the_cache(stand_in):
    repository = stand_in.repositories[REPO] = Repository(REPO)
    old = repository.commit("main", "old", {"a.json": b"old", "b.json": b"old"}).oid
    tree = FileTree(REPO, dataset=True)
    assert tree.names() == ("a.json", "b.json")
    repository.commit("main", "new", {"a.json": b"new", "b.json": b"new"})
    assert [tree.fetch(name).read_bytes() for name in ("b.json", "a.json")] == [b"old", b"old"]
    assert tree.commit == old
    assert {path.split("/")[1] for _, path in stand_in.requests if "/resolve/" in path} == {"datasets"}
    pinned = FileTree(REPO, dataset=True, revision=old)
    assert pinned.fetch("a.json").read_bytes() == b"old"
    stand_in.stop()
    offline = FileTree(REPO, dataset=True, revision=old)
    assert set(offline.names()) == {"a.json", "b.json"}
    assert offline.fetch("b.json").read_bytes() == b"old"
    assert offline.commit == old
    with pytest.raises(LocalEntryNotFoundError):  # a model of that name is another repository
        FileTree(REPO, local_files_only=True).names()


@pytest.mark.parametrize("source", ["nowhere/at/all", "/nowhere", "./nowhere", "~/nowhere", "a b", "file"])
def test_what_is_neither_a_folder_nor_an_id_is_refused_before_the_hub_is_asked(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=f"source='{source}'"):
        FileTree(source).check_source()
    for right in (tmp_path, "user/name", "name"):
        FileTree(right).check_source()
