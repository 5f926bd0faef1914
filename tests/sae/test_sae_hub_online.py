"""A small server on this machine stands in for the Hub: what is asked of it, and what is left when it is gone."""

import http.server
import json
import threading

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from sae_folders import write_gemma_scope_2

from sae_unlearn.sae import SAEFormatError, SparseAutoencoder


COMMIT = "d" * 40
SUBFOLDER = "resid_post/layer_9_width_16k_l0_small"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serves one repository, me/sae, and keeps the list of what was downloaded."""
    root = tmp_path / "served"
    write_gemma_scope_2(root / SUBFOLDER, config={"hf_hook_point_in": "model.layers.9.output"})
    (root / "other").mkdir()
    (root / "other/model.bin").write_bytes(b"not wanted")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/me/sae"):
                files = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
                info = {"id": "me/sae", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                body = json.dumps(info).encode()
            elif path.startswith("/me/sae/resolve/"):
                name = path.removeprefix("/me/sae/resolve/").split("/", 1)[1]
                body = (root / name).read_bytes()
                if self.command == "GET":
                    server.downloads.append(name)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{abs(hash(body)):x}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.downloads = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    server.load = lambda repo_id="me/sae", subfolder=SUBFOLDER, **kwargs: SparseAutoencoder.from_pretrained(
        repo_id, subfolder=subfolder, cache_dir=tmp_path / "cache", **kwargs
    )
    yield server
    stop(server)


def stop(server):
    server.shutdown()
    server.server_close()


def test_only_the_files_of_the_sae_are_downloaded_and_the_commit_is_recorded(hub):
    sae = hub.load()
    assert sorted(hub.downloads) == [f"{SUBFOLDER}/config.json", f"{SUBFOLDER}/params.safetensors"]
    assert (sae.source["id"], sae.source["revision"], sae.layer) == ("me/sae", COMMIT, 9)


@pytest.mark.parametrize("kwargs", [{}, {"revision": COMMIT}, {"local_files_only": True}])
def test_what_was_loaded_once_is_there_without_the_hub(hub, kwargs):
    hub.load()
    stop(hub)
    assert hub.load(**kwargs).source["revision"] == COMMIT


def test_nothing_is_downloaded_for_a_wrong_subfolder(hub):
    with pytest.raises(SAEFormatError, match=f"Did you mean subfolder='{SUBFOLDER}'"):
        hub.load(subfolder="resid_post/layer_9_width_16k")
    assert hub.downloads == []


def test_an_absent_repository_is_the_hub_s_own_error(hub):
    with pytest.raises(RepositoryNotFoundError):
        hub.load("me/absent")
