"""`sae-unlearn show` on a bundle: all of its members, or the one that is named."""

import pytest
import torch
from hub_requests import OWNER
from peft import LoraConfig, get_peft_model
from zoo import base_model, guarded

from sae_unlearn import attach_guardrail, push_bundle, save_bundle
from sae_unlearn.cli.main import main


@pytest.fixture
def model(tmp_path):
    """Two guardrails and a LoRA."""
    torch.manual_seed(0)
    found = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"), adapter_name="aligned")
    for layer, name in enumerate(("biology", "person"), 1):
        guarded("llama", layer=layer).save_pretrained(tmp_path / name)
        found = attach_guardrail(found, tmp_path / name, adapter_name=name)
    return found


def test_all_members_are_shown(model, tmp_path, capsys):
    save_bundle(model, tmp_path / "bundle")
    assert main(["show", str(tmp_path / "bundle")]) == 0
    printed = capsys.readouterr().out
    head, *members = printed.split("Guardrail ")
    assert [line.split()[:2] for line in head.splitlines()[2:5]] == [
        ["guardrail", "biology"],
        ["guardrail", "person"],
        ["LoRA", "aligned,"],
    ]
    for member, name, layer in zip(members, ("biology", "person"), (1, 2), strict=True):
        assert member.startswith(f"{tmp_path / 'bundle'}, folder {name}\n")
        assert f"{layer} (its output)" in member


def test_one_member_is_shown_by_its_folder(model, tmp_path, capsys):
    save_bundle(model, tmp_path / "bundle")
    assert main(["show", str(tmp_path / "bundle"), "--adapter-subfolder", "person"]) == 0
    printed = capsys.readouterr().out
    assert "2 (its output)" in printed
    assert "biology" not in printed


def test_a_bundle_on_the_hub_is_shown_of_one_commit(model, stand_in, capsys):
    old = push_bundle(model, "me/all", token=OWNER).oid
    push_bundle(model, "me/all", token=OWNER, license="mit")
    assert main(["show", "me/all", "--adapter-revision", old]) == 0
    assert capsys.readouterr().out.count(old) == 3


def test_a_page_is_of_one_member(model, tmp_path, capsys):
    save_bundle(model, tmp_path / "bundle")
    page = tmp_path / "page.html"
    assert main(["show", str(tmp_path / "bundle"), "--html", str(page)]) == 2
    assert "Pass --adapter-subfolder" in capsys.readouterr().err
    assert not page.exists()
    assert main(["show", str(tmp_path / "bundle"), "--adapter-subfolder", "person", "--html", str(page)]) == 0
    assert page.is_file()


def test_a_member_that_is_not_there_is_named(model, tmp_path, capsys):
    save_bundle(model, tmp_path / "bundle")
    (tmp_path / "bundle" / "person" / "adapter_model.safetensors").unlink()
    assert main(["show", str(tmp_path / "bundle")]) == 2
    assert "person has no adapter_model.safetensors" in capsys.readouterr().err
