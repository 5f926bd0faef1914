"""A bundle's way to the Hub and back, through the real `huggingface_hub` and a stand-in of the Hub's interface."""

import pytest
import torch
from bundled import logits, lora, with_guards
from hub_requests import OWNER, READER, STRANGER
from huggingface_hub import HfApi
from peft import PeftModel
from zoo import base_model

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, list_guardrails, push_bundle


REPO = "me/forget-several"


def test_pushed_and_attached_by_name_all_of_it_is_of_one_commit(stand_in, model):
    commit = push_bundle(model, REPO, token=OWNER)
    files = stand_in.repositories[REPO].at("main").files
    assert {"bundle.json", "README.md", "biology/adapter_model.safetensors", "person/README.md"} <= files.keys()
    again = attach_bundle(base_model("llama"), REPO)
    assert torch.equal(logits(again), logits(model))
    assert {s.revision for s in list_guardrails(again)} == {commit.oid}
    assert f'attach_bundle(model, "{REPO}"' in files["README.md"].decode()


def test_the_calls_in_the_members_cards_work_as_they_are_written(stand_in, tmp_path):
    model = with_guards(lora(), tmp_path)
    commit = push_bundle(model, "forget-several", token=OWNER)
    files = stand_in.repositories[REPO].at("main").files

    def shown(member):
        card = files[f"{member}/README.md"].decode()
        call = next(line for line in card.splitlines() if line.startswith("model = ") and f'"{REPO}"' in line)
        names = {"attach_guardrail": attach_guardrail, "PeftModel": PeftModel, "model": base_model("llama")}
        exec(call.replace("<commit>", commit.oid), names)
        return names["model"].eval()

    for member in ("biology", "person"):
        found = shown(member)
        assert [(s.subfolder, s.revision) for s in list_guardrails(found)] == [(member, commit.oid)]
        alone = attach_guardrail(base_model("llama"), tmp_path / f"alone-{member}")
        assert torch.equal(logits(found), logits(alone))
    assert torch.equal(logits(shown("aligned")), logits(lora()))


def test_a_push_looks_up_the_licenses_of_all_members_on_the_hub(stand_in, model):
    api = HfApi(token=OWNER)
    for name, license in (("base", "gemma"), ("sae", "cc-by-4.0")):
        api.create_repo(f"me/{name}")
        card = f"---\nlicense: {license}\n---\n".encode()
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=f"me/{name}")
    for config in model.peft_config.values():
        config.base_model_name_or_path = "me/base"
    model.peft_config["biology"].sae_source = {"id": "me/sae"}
    push_bundle(model, REPO, token=OWNER, license="mit")
    files = stand_in.repositories[REPO].at("main").files
    assert "`me/sae`, license `cc-by-4.0`" in files["biology/README.md"].decode()
    for path in [path for path in files if path.endswith("/README.md")]:
        assert "`me/base`, license `gemma`" in files[path].decode()
        assert "\nlicense: mit\n" in files[path].decode()


@pytest.mark.slow
def test_a_pinned_bundle_is_honoured_after_a_newer_push(stand_in, model, tmp_path):
    old = push_bundle(model, REPO, token=OWNER).oid
    newer = with_guards(base_model("llama"), tmp_path, ["biology", "books"], threshold=0.1)
    push_bundle(newer, REPO, token=OWNER)
    assert torch.equal(logits(attach_bundle(base_model("llama"), REPO, revision=old)), logits(model))
    assert torch.equal(logits(attach_bundle(base_model("llama"), REPO)), logits(newer))


def test_a_private_bundle_opens_for_its_owner_and_is_there_without_the_hub(stand_in, model):
    push_bundle(model, REPO, token=OWNER, private=True)
    for token in (None, STRANGER):
        with pytest.raises(GuardrailError, match=r"^me/forget-several "):
            attach_bundle(base_model("llama"), REPO, token=token)
    attach_bundle(base_model("llama"), REPO, token=READER)
    stand_in.stop()
    assert torch.equal(logits(attach_bundle(base_model("llama"), REPO)), logits(model))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["PUT /storage/", "POST .*/commit/"])
def test_an_interrupted_push_leaves_nothing_and_can_be_repeated(stand_in, model, where):
    stand_in.break_at = where
    with pytest.raises(GuardrailError, match=r"upload .*me/forget-several "):
        push_bundle(model, REPO, token=OWNER)
    assert stand_in.repositories[REPO].at("main").files == {}
    with pytest.raises(GuardrailError, match=r"me/forget-several .*bundle\.json"):
        attach_bundle(base_model("llama"), REPO)
    stand_in.break_at = None
    push_bundle(model, REPO, token=OWNER)
    assert torch.equal(logits(attach_bundle(base_model("llama"), REPO)), logits(model))


@pytest.mark.slow
def test_where_one_guardrail_is_asked_for_a_bundle_is_named_with_its_members(stand_in, model, folder):
    push_bundle(model, REPO, token=OWNER)
    for source in (folder, REPO):
        with pytest.raises(GuardrailError, match=r"biology, person.*`attach_"):
            attach_guardrail(base_model("llama"), source)
    with pytest.raises(GuardrailError, match=r"person/absent .*adapter_config\.json"):
        attach_guardrail(base_model("llama"), folder, subfolder="person/absent")
    attach_bundle(base_model("llama"), REPO)
    stand_in.stop()
    with pytest.raises(GuardrailError, match=f"^{REPO} .*biology, person.*`attach_bundle`"):
        attach_guardrail(base_model("llama"), REPO)
