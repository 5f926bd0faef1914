"""`push_to_hub` uploads the folder as it is saved. The network side is huggingface_hub's own."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from peft import PeftConfig
from zoo import guarded

from sae_unlearn.guardrail import GuardedModel
from sae_unlearn.guardrail.artefact import Artefact, read_artefact
from sae_unlearn.guardrail.attach import detach_guardrail, place_guardrail


@pytest.fixture
def pushed(monkeypatch):
    """What would be uploaded: `{"repo_id": ..., "private": ..., "files": {name: bytes}}`."""
    found = {}

    class Repo:
        repo_id = "me/forget"

    def create_repo(self, repo_id, private=None, exist_ok=False):
        found.update(repo_id=repo_id, private=private, exist_ok=exist_ok)
        return Repo

    def upload_folder(self, *, repo_id, folder_path, commit_message, revision, allow_patterns):
        found.update(to=repo_id, message=commit_message, patterns=allow_patterns)
        found["files"] = {path.name: path.read_bytes() for path in Path(folder_path).rglob("*") if path.is_file()}

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return found


def test_the_card_that_is_pushed_is_ours_and_the_artefact_reads_back(pushed, tmp_path):
    first = guarded("llama")
    first.save_pretrained(tmp_path / "first")
    artefact = read_artefact(tmp_path / "first")
    model = place_guardrail(detach_guardrail(first), Artefact(artefact.config, artefact.tensors, None), "default")
    assert isinstance(model, GuardedModel)
    model.push_to_hub("forget", private=True)
    assert (pushed["repo_id"], pushed["private"], pushed["exist_ok"], pushed["to"]) == (
        "forget",
        True,
        True,
        "me/forget",
    )
    assert set(pushed["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = ModelCard(pushed["files"]["README.md"].decode())
    assert card.data.base_model == "tiny-llama"
    assert "sae-guardrail" in card.data.tags
    assert "does not protect" in card.text
    for name, content in pushed["files"].items():
        (tmp_path / name).write_bytes(content)
    assert PeftConfig.from_pretrained(tmp_path).peft_type == "SAE_GUARDRAIL"
    again = read_artefact(tmp_path)
    assert all(again.tensors[name].equal(tensor) for name, tensor in artefact.tensors.items())
