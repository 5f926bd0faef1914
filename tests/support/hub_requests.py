"""Requests to the stand-in of the Hub: who may ask, what is asked, and how an answer is sent."""

import http.server
import json
import re
import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_repositories import NotFound, Repository


OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
TOKENS = {OWNER: ("me", "write"), READER: ("me", "read"), STRANGER: ("you", "write")}
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/(?:models|datasets)/{_REPO}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"/api/models/{_REPO}/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "store"),
    ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", "stored"),
    ("GET", rf"/(?:datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, content: dict | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.content = {"error": message} | (content or {})


class Handler(http.server.BaseHTTPRequestHandler):
    """Finds the answer to a request, and sends it."""

    stand_in: Any  # the `HubStandIn` that answers

    def answer(self) -> None:
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        hub = self.stand_in
        hub.requests.append((self.command, unquote(path)))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.break_at and re.search(hub.break_at, f"{self.command} {unquote(path)}"):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        call = SimpleNamespace(body=body, query=query, status=200, headers={}, user=None, role=None)
        try:
            content = self.found(path, call)
        except NotFound as error:
            call.status, content = 404, {"error": error.code}
            call.headers["X-Error-Code"] = error.code
        except Refused as error:
            call.status, content = error.status, error.content
            call.headers["X-Error-Message"] = error.message
            if error.code:
                call.headers["X-Error-Code"] = error.code
        self.send(call, content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def found(self, path: str, call: SimpleNamespace) -> Any:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        call.user, call.role = TOKENS.get(token, (None, None))
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                vars(call).update({key: value and unquote(value) for key, value in match.groupdict().items()})
                if match.groupdict().get("repo"):
                    call.repository = self.repository(call)
                return getattr(self.stand_in, name)(call)
        raise Refused(404, f"the stand-in has no {self.command} {path}")

    def repository(self, call: SimpleNamespace) -> Repository:
        found = self.stand_in.repositories.get(call.repo)
        if found is None or (found.private and call.user != call.repo.split("/")[0]):
            raise Refused(404 if call.user else 401, "Repository not found", "RepoNotFound")
        return found

    def send(self, call: SimpleNamespace, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start and call.status == 200:
            call.status = 206
            call.headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
            data = data[int(start[1]) :]
        self.send_response(call.status)
        for name, value in (call.headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass
