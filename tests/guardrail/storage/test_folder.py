"""An opened folder: resolved once, whatever is read from it and whoever reads it."""

import inspect

import pytest
import torch
from hub_requests import OWNER
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, list_guardrails, push_bundle, save_bundle
from sae_unlearn.evaluation import stored_picture
from sae_unlearn.guardrail.check.check import check_guardrail
from sae_unlearn.guardrail.storage.bundle_index import BundleGiven
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


REPO = "me/forget"
HUB = ("revision", "subfolder", "token", "cache_dir", "local_files_only")


def logits(model):
    return logits_of(model, token_ids(8, 12))


def bundled(root, **fields):
    model = base_model("llama")
    for layer, name in enumerate(("biology", "person"), 1):
        guarded("llama", layer=layer, **fields).save_pretrained(root / f"alone-{name}")
        model = attach_guardrail(model, root / f"alone-{name}", adapter_name=name)
    return model


@pytest.mark.parametrize(
    "read", [attach_guardrail, attach_bundle, check_guardrail, stored_picture, GuardrailFolder.open]
)
def test_where_a_guardrail_comes_from_is_five_named_arguments(read):
    parameters = inspect.signature(read).parameters
    assert {name for name in HUB if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY} == set(HUB)
    assert not [name for name, each in parameters.items() if each.kind is inspect.Parameter.VAR_KEYWORD]


def test_everything_read_from_an_open_folder_is_of_the_commit_of_the_first_read(stand_in):
    first, second = guarded("llama"), guarded("llama", threshold=0.1)
    old = first.push_to_hub(REPO, token=OWNER).oid
    folder = GuardrailFolder.open(REPO)
    assert folder.commit is None
    assert folder.config().threshold == first.peft_config["default"].threshold
    second.push_to_hub(REPO, token=OWNER)
    assert folder.commit == old
    assert folder.artefact().revision == old
    assert stored_picture(folder).config.threshold == first.peft_config["default"].threshold
    model = attach_guardrail(base_model("llama"), folder)
    assert torch.equal(logits(model), logits(first))
    assert {s.revision for s in list_guardrails(model)} == {old}
    assert not torch.equal(logits(attach_guardrail(base_model("llama"), REPO)), logits(first))


def test_the_members_of_an_open_bundle_are_of_its_commit(stand_in, tmp_path):
    old = push_bundle(bundled(tmp_path / "first"), REPO, token=OWNER).oid
    folder = GuardrailFolder.open(REPO)
    assert folder.bundle().members == ["biology", "person"]
    push_bundle(bundled(tmp_path / "second", threshold=0.1), REPO, token=OWNER)
    assert folder.member("person").artefact().revision == old
    assert {s.revision for s in list_guardrails(attach_bundle(base_model("llama"), folder))} == {old}


def test_the_revision_is_asked_for_by_name_once(stand_in, tmp_path):
    commit = push_bundle(bundled(tmp_path), REPO, token=OWNER).oid
    stand_in.requests.clear()
    attach_bundle(base_model("llama"), REPO)
    asked = {tuple(path.split("/resolve/")[1].split("/", 1)) for _, path in stand_in.requests if "/resolve/" in path}
    assert {name for revision, name in asked if revision == "main"} == {"bundle.json"}
    assert {revision for revision, _ in asked} == {"main", commit}


@pytest.mark.parametrize("argument", HUB)
def test_an_open_folder_is_opened_no_second_time(argument, tmp_path):
    guarded("llama").save_pretrained(tmp_path)
    folder = GuardrailFolder.open(tmp_path)
    assert GuardrailFolder.open(folder) is folder
    value = True if argument == "local_files_only" else "other"
    with pytest.raises(GuardrailError, match=f"^{argument}: "):
        attach_guardrail(base_model("llama"), folder, **{argument: value})


def test_a_bundle_may_lie_in_a_subfolder(tmp_path):
    model = bundled(tmp_path)
    save_bundle(model, tmp_path / "all" / "topics")
    again = attach_bundle(base_model("llama"), tmp_path / "all", subfolder="topics")
    assert torch.equal(logits(again), logits(model))
    assert {s.subfolder for s in list_guardrails(again)} == {"topics/biology", "topics/person"}
    with pytest.raises(BundleGiven, match=r"topics .*topics/biology, topics/person"):
        attach_guardrail(base_model("llama"), tmp_path / "all", subfolder="topics")


def test_an_open_folder_leads_nowhere_else(tmp_path):
    guarded("llama").save_pretrained(tmp_path / "guard")
    folder = GuardrailFolder.open(tmp_path / "guard")
    for name in ("../guard", "/etc"):
        with pytest.raises(GuardrailError, match=r"without '\.\.'"):
            folder.member(name)
    with pytest.raises(GuardrailError, match=r"^source=5: .*got int"):
        GuardrailFolder.open(5)
    with pytest.raises(GuardrailError, match="more than 10"):
        folder.read_json("adapter_config.json", 10)
    assert len(folder.read("adapter_config.json", 10)) == 10
