"""A server on this machine that speaks as much of the Hub's HTTP interface as `huggingface_hub` needs for models.

Repositories are made, listed, read at branches, tags and commits, and written by atomic commits, to a branch or as a
pull request; large files go to a storage of their own first. Private repositories need a token of their owner. What a
request is answered with follows the Hub: status, `X-Error-Code`, `X-Repo-Commit`, `ETag`, and `X-Linked-*` with a
redirect for large files.
"""

import base64
import hashlib
import http.server
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import huggingface_hub
from hub_metadata import metadata, metadata_errors
from hub_repositories import Repository, blob_id, is_large
from hub_requests import Handler, Refused


class HubStandIn:
    """The server.

    Attributes:
        repositories: by id.
        storage: large files by their SHA-256.
        requests: what was asked, `(method, path)`.
        break_at: a pattern of `METHOD path`; the connection of every request that matches is cut.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.break_at: str | None = None
        hub = self

        class BoundHandler(Handler):
            stand_in = hub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_endpoint = f"http://localhost:{self._server.server_port}"  # another host, as the Hub's is
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """No more answers: the Hub cannot be reached."""
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for."""
        pairs = [path.partition("/resolve/") for method, path in self.requests if method == "GET"]
        return [name for _, found, name in pairs if found]

    # ------------------------------------------------------------------------------------------------------ the answers

    def whoami(self, call: SimpleNamespace) -> dict[str, Any]:
        if call.user is None:
            raise Refused(401, "Invalid username or password.")
        return {"type": "user", "name": call.user, "orgs": [], "auth": {"accessToken": {"role": call.role}}}

    def create(self, call: SimpleNamespace) -> dict[str, Any]:
        given = json.loads(call.body)
        if call.user is None:
            raise Refused(401, "Invalid username or password.")
        repo_id = f"{given.get('organization') or call.user}/{given['name']}"
        if call.role != "write" or repo_id.split("/")[0] != call.user:
            raise Refused(403, f"You don't have the rights to create a model under the namespace of {repo_id}")
        if repo_id in self.repositories:
            raise Refused(409, "You already created this model repo", content={"url": f"{self.endpoint}/{repo_id}"})
        private = given.get("visibility") == "private" or bool(given.get("private"))
        self.repositories[repo_id] = Repository(repo_id, private)
        return {"url": f"{self.endpoint}/{repo_id}", "name": repo_id}

    def validate(self, call: SimpleNamespace) -> dict[str, Any]:
        errors, warnings = metadata_errors(json.loads(call.body)["content"])
        call.status = 400 if errors else 200
        return {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}

    def info(self, call: SimpleNamespace) -> dict[str, Any]:
        commit = call.repository.at(call.revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        found = {"id": call.repo, "sha": commit.oid, "private": call.repository.private, "siblings": siblings}
        card = metadata(commit.files.get("README.md", b"").decode())
        return found | ({"cardData": card} if card else {})

    def tree(self, call: SimpleNamespace) -> list[dict[str, Any]]:
        files = call.repository.at(call.revision).files
        inside = f"{call.path}/" if call.path else ""
        return [entry(path, data) for path, data in sorted(files.items()) if path.startswith(inside)]

    def preupload(self, call: SimpleNamespace) -> dict[str, Any]:
        self.require_write(call)
        there = call.repository.at(call.revision).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": entry("", there[file["path"]])["oid"] if file["path"] in there else None,
                }
                for file in json.loads(call.body)["files"]
            ]
        }

    def batch(self, call: SimpleNamespace) -> dict[str, Any]:
        self.require_write(call)
        objects = json.loads(call.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.storage:
                wanted["actions"] = {"upload": {"href": f"{self.storage_endpoint}/storage/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def store(self, call: SimpleNamespace) -> dict[str, Any]:
        if hashlib.sha256(call.body).hexdigest() != call.oid:
            raise Refused(400, "the content is not what was announced")
        self.storage[call.oid] = call.body
        return {}

    def commit(self, call: SimpleNamespace) -> dict[str, Any]:
        self.require_write(call)
        lines = [json.loads(line) for line in call.body.splitlines()]
        before = call.repository.at(call.revision)
        files, summary = dict(before.files), {}
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                summary = value
                if value.get("parentCommit") not in (None, before.oid):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.storage:
                    raise Refused(400, f"LFS object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = self.storage[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
        if "README.md" in files and metadata_errors(files["README.md"].decode())[0]:
            raise Refused(400, "Invalid metadata in README.md")
        branch, answer = call.revision, {}
        if "create_pr=1" in call.query:
            branch = call.repository.open_pull_request(call.revision)
            answer["pullRequestUrl"] = f"{self.endpoint}/{call.repo}/discussions/{branch.rpartition('/')[2]}"
        oid = call.repository.commit(branch, summary["summary"], files, summary.get("description", "")).oid
        return answer | {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/{call.repo}/commit/{oid}"}

    def branch(self, call: SimpleNamespace) -> dict[str, Any]:
        self.require_write(call)
        if call.revision in call.repository.refs:
            raise Refused(409, "Reference already exists")
        start = json.loads(call.body or b"{}").get("startingPoint", "main")
        call.repository.refs[call.revision] = call.repository.at(start).oid
        return {}

    def tag(self, call: SimpleNamespace) -> dict[str, Any]:
        self.require_write(call)
        call.repository.refs[json.loads(call.body)["tag"]] = call.repository.at(call.revision).oid
        return {}

    def resolve(self, call: SimpleNamespace) -> bytes:
        commit = call.repository.at(call.revision)
        call.headers["X-Repo-Commit"] = commit.oid
        data = call.repository.file(call.revision, call.path)
        if not is_large(call.path):
            call.headers["ETag"] = f'"{blob_id(data)}"'
            return data
        oid = hashlib.sha256(data).hexdigest()
        self.storage[oid] = data
        call.status = 302
        call.headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        call.headers["Location"] = f"{self.storage_endpoint}/storage/{oid}"
        return b""

    def stored(self, call: SimpleNamespace) -> bytes:
        call.headers["ETag"] = f'"{call.oid}"'
        return self.storage[call.oid]

    def require_write(self, call: SimpleNamespace) -> None:
        if call.user is None:
            raise Refused(401, "Invalid username or password.")
        if call.role != "write" or call.repo.split("/")[0] != call.user:
            raise Refused(403, "you must use a write token of the repository's owner")


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a listing."""
    found = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
    if is_large(path):
        oid = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return found


def point_at(hub: HubStandIn, monkeypatch: Any, cache: Any) -> None:
    """Make `huggingface_hub` of this process ask the stand-in, with `cache` for its cache and nobody logged in."""
    constants = huggingface_hub.constants
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # Xet has a protocol of its own
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # keeps an endpoint of its own
    without_waiting = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", without_waiting)
    huggingface_hub.close_session()  # a client that was made before may go through a proxy
