"""A stand-in for a guarded server over HTTP, and guardrails with stored rows that belong to it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import served

from sae_unlearn.files.digest import sha256


FIRED = {"fired": True, "statistic": 0.9, "threshold": 0.5, "tokens": 9, "at_token": 2, "enabled": True}
QUIET = FIRED | {"fired": False, "statistic": 0.1, "at_token": None}
TOPIC, OTHER = [5, 6, 7], [8, 9]
MESSAGE = [201, 202]


class Server(ThreadingHTTPServer):
    """A server of one model that fires on prompts with a 5 or the word "topic"."""

    def __init__(self, guardrails, action="clamp"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.guardrails, self.action, self.records, self.asked = guardrails, action, {}, []
        self.engine, self.names = "vllm", ["guard"]
        self.answer_ids, self.keeps_records, self.broken, self.per_request = [1], True, False, False
        self.text, self.model = "x", {}
        self.ends_at = None  # the path at which it is lost in the middle of an answer
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _send(self, value, status=200):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        ended = self.server.ends_at is not None and self.path.startswith(self.server.ends_at)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + ended))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urlparse(self.path)
        server = self.server
        if url.path == "/health":
            self._send({})
        elif url.path == "/v1/models":
            self._send(b"<html>" if server.broken else {"data": [{"id": "m"}]})
        elif url.path == "/sae_guardrail/guardrails" and server.guardrails is not None:
            about = {"engine": server.engine, "per_request": server.per_request, **server.model}
            self._send({**about, "guardrails": server.guardrails})
        elif url.path == "/sae_guardrail/records":
            name = parse_qs(url.query)["request_id"][0]
            self._send({f"{name}-xyz": server.records[name]} if name in server.records else {})
        else:
            self._send({}, 404)

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body, self.headers.get("Authorization")))
        if server.engine == "transformers" and "return_token_ids" in body:
            return self._send({"detail": "Unexpected fields in the request: {'return_token_ids'}"}, 422)
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        fires = 5 in prompt if isinstance(prompt, list) else "topic" in prompt
        name = f"cmpl-{len(server.asked)}"
        if server.keeps_records:
            record = (FIRED if fires else QUIET) | {"action": server.action}
            server.records[name] = dict.fromkeys(server.names, record)
        said = {"message": {"content": server.text}} if "messages" in body else {"text": server.text}
        return self._send({"id": name, "choices": [{**said, "token_ids": server.answer_ids}]})


def stored(path):
    return json.loads((path / "adapter_config.json").read_text())


def seals(path):
    """The seals of a folder, as a server lists them."""
    return {seal: stored(path).get(seal) for seal in ("weights_sha256", "config_sha256")}


def entry(path, name="guard"):
    """A guardrail in the list of a server."""
    return {"name": name, "layer": 1, "action": "clamp", "gate_scope": "prefix", **seals(path)}


def save_guardrails(folder):
    """Save guardrails with a probe whose gate fires on `TOPIC`: `guard`, one that refuses, and one for a chat."""
    model = served.save_model(folder, "gemma3")
    probe = {"probe": {"forget": [TOPIC], "retain": [OTHER]}, "probe_statistics": {"forget": [0.9], "retain": [0.1]}}
    fields = {"action": "refuse", "refusal_ids": MESSAGE, "refusal": "no"}
    for name, more in (("guard", {"calibration": probe}), ("chat", {"calibration": {"chat_template": True}})):
        served.save_guardrail(folder, model, name, **more)
    served.save_guardrail(folder, model, "refuse", calibration=probe, **fields)
    for path in (folder / name for name in ("guard", "chat", "refuse")):
        seal = {"weights_sha256": sha256((path / "adapter_model.safetensors").read_bytes())}
        (path / "adapter_config.json").write_text(json.dumps(stored(path) | seal))
    return folder
