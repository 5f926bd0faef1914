"""A guardrail's way to the Hub and back, through the real `huggingface_hub` and a stand-in of the Hub's interface."""

import json

import pytest
import torch
from hub_guardrails import REPO, attach, guarded, logits, origin
from hub_requests import OWNER, READER, STRANGER
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail, list_guardrails, record_firings
from sae_unlearn.cli.main import main


# -------------------------------------------------------------------------------------------------------------- pushing


def test_pushed_and_attached_by_name_it_guards_bit_for_bit_and_knows_its_commit(stand_in):
    model = guarded()
    commit = model.push_to_hub(REPO, token=OWNER)
    files = stand_in.repositories[REPO].at("main").files
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert commit.oid == stand_in.repositories[REPO].at("main").oid
    again = attach()
    assert torch.equal(logits(again), logits(model))
    assert origin(again) == {"id": REPO, "subfolder": None, "revision": commit.oid}
    with record_firings(again) as firings:
        logits(again)
    assert any(f.fired for f in firings)


def test_a_name_without_a_user_goes_to_one_s_own_repositories_and_the_card_names_that(stand_in):
    guarded().push_to_hub("forget", token=OWNER)
    assert list(stand_in.repositories) == [REPO]
    assert not stand_in.repositories[REPO].private
    assert 'attach_guardrail(model, "me/forget", revision=' in ModelCard.load(REPO).text


def test_the_card_that_lies_on_the_hub_is_ours(stand_in):
    guarded().push_to_hub(REPO, token=OWNER)
    card = ModelCard.load(REPO)
    assert card.data.base_model == "tiny-llama"
    assert "sae-guardrail" in card.data.tags
    assert "What it does not do" in card.text
    assert ("POST", "/api/validate-yaml") in stand_in.requests


def test_where_it_was_loaded_from_is_not_saved(stand_in, tmp_path):
    guarded().push_to_hub(REPO, token=OWNER)
    attach().save_pretrained(tmp_path)
    assert "origin" not in json.loads((tmp_path / "adapter_config.json").read_text())
    assert origin(attach(tmp_path)) == {"id": str(tmp_path), "subfolder": None, "revision": None}


def test_peft_loads_it_from_the_hub_too(stand_in):
    model = guarded()
    commit = model.push_to_hub(REPO, token=OWNER)
    found = PeftModel.from_pretrained(base_model("llama"), REPO, revision=commit.oid).eval()
    assert torch.equal(logits(found), logits(model))


def test_show_reads_it_from_the_hub_and_names_the_commit(stand_in, capsys):
    commit = guarded().push_to_hub(REPO, token=OWNER)
    assert main(["show", REPO]) == 0
    assert commit.oid in capsys.readouterr().out


def test_a_folder_of_a_repository_can_be_attached(stand_in, tmp_path):
    guarded().save_pretrained(tmp_path / "biology")
    api = HfApi(token=OWNER)
    api.create_repo(REPO)
    commit = api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    found = attach(subfolder="biology")
    assert torch.equal(logits(found), logits(guarded()))
    assert origin(found) == {"id": REPO, "subfolder": "biology", "revision": commit.oid}


def named(names, root, **fields):
    """A model with guardrails of these names, each on a layer of its own."""
    model = base_model("llama")
    for layer, name in enumerate(names, 1):
        guarded(seed=layer, layer=layer, **fields).save_pretrained(root / name)
        model = attach_guardrail(model, root / name, adapter_name=name)
    return model


def test_a_guardrail_of_any_name_is_attached_by_the_repository_alone(stand_in, tmp_path):
    model = named(["biology"], tmp_path)
    commit = model.push_to_hub(REPO, token=OWNER)
    assert sorted(commit_files(stand_in)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert torch.equal(logits(attach()), logits(model))
    call = next(line for line in ModelCard.load(REPO).text.splitlines() if "= attach_guardrail(" in line)
    names = {"attach_guardrail": attach_guardrail, "model": base_model("llama")}
    exec(call.replace("<commit>", commit.oid), names)
    assert torch.equal(logits(names["model"]), logits(model))
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), REPO).eval()), logits(model))


def commit_files(hub, revision="main"):
    return hub.repositories[REPO].at(revision).files


def test_of_several_guardrails_one_is_named_or_all_are_a_bundle(stand_in, tmp_path):
    model = named(["biology", "person"], tmp_path)
    with pytest.raises(GuardrailError, match=r"selected_adapters.*\['biology', 'person'\].*`push_bundle`"):
        model.push_to_hub(REPO, token=OWNER)
    with pytest.raises(GuardrailError, match=r"selected_adapters=\['books'\]"):
        model.push_to_hub(REPO, token=OWNER, selected_adapters=["books"])
    with pytest.raises(GuardrailError, match=r"got \[\]"):
        model.push_to_hub(REPO, token=OWNER, selected_adapters=[])
    assert stand_in.repositories == {}
    model.push_to_hub(REPO, token=OWNER, selected_adapters=["person"])
    assert [status.layer for status in list_guardrails(attach())] == [2]


@pytest.mark.parametrize("argument", ["commit_desciption", "create_pull_request", "card", "max_shard_size"])
def test_an_argument_that_nobody_knows_is_refused_and_nothing_is_made(stand_in, tmp_path, argument):
    with pytest.raises(GuardrailError, match=f"'{argument}'.*`push_to_hub`.* selected_adapters"):
        guarded().push_to_hub(REPO, token=OWNER, **{argument: "x"})
    assert stand_in.repositories == {}
    if argument != "card":
        with pytest.raises(GuardrailError, match=f"'{argument}'.*`save_pretrained`"):
            guarded().save_pretrained(tmp_path / "guard", **{argument: "x"})
        assert not (tmp_path / "guard").exists()


def test_what_peft_knows_is_handed_on(stand_in, tmp_path):
    model, other = guarded(), guarded(seed=1)
    model.push_to_hub(REPO, token=OWNER, state_dict=other.state_dict(), save_embedding_layers=False)
    assert torch.equal(logits(attach()), logits(other))
    model.save_pretrained(tmp_path / "guard", is_main_process=False)
    assert list((tmp_path / "guard").iterdir()) == []


# --------------------------------------------------------------------------------------------------------- who may read


def test_a_private_repository_opens_with_its_owner_s_token_only(stand_in):
    model = guarded()
    model.push_to_hub(REPO, token=OWNER, private=True)
    assert stand_in.repositories[REPO].private
    for token in (None, STRANGER):
        with pytest.raises(GuardrailError, match=r"me/forget.*`token=`"):
            attach(token=token)
    with pytest.raises(GuardrailError, match=r"me/forget.*401"):
        attach(token="hf_expired")
    for token in (OWNER, READER):
        assert torch.equal(logits(attach(token=token)), logits(model))


def test_an_absent_repository_is_named(stand_in):
    with pytest.raises(GuardrailError, match=r"^me/absent "):
        attach("me/absent")


def test_a_repository_without_a_guardrail_is_named(stand_in):
    HfApi(token=OWNER).create_repo("me/empty")
    with pytest.raises(GuardrailError, match=r"me/empty .*adapter_config\.json .*'main'"):
        attach("me/empty")


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        (REPO, READER, "token.* me/forget"),
        (REPO, None, "token.* me/forget"),
        (REPO, STRANGER, "token.* me/forget"),
        ("me/for get", OWNER, "'me/for get'"),
        ("me/forget/biology", OWNER, "'me/forget/biology'"),
    ],
)
def test_a_push_that_is_not_allowed_is_refused_with_the_mend(stand_in, repo_id, token, message):
    with pytest.raises(GuardrailError, match=message):
        guarded().push_to_hub(repo_id, token=token)
    assert stand_in.repositories == {}


def test_a_stranger_cannot_push_to_a_repository_that_is_there(stand_in):
    guarded().push_to_hub(REPO, token=OWNER)
    before = stand_in.repositories[REPO].at("main")
    with pytest.raises(GuardrailError, match=r"me/forget.*`token=`.*403"):
        guarded(seed=1).push_to_hub(REPO, token=STRANGER)
    assert stand_in.repositories[REPO].at("main") is before


def test_metadata_that_the_hub_does_not_take_stops_the_push_before_anything_is_sent(stand_in):
    with pytest.raises(GuardrailError, match=r'me/forget: .*"license"'):
        guarded().push_to_hub(REPO, token=OWNER, license="proprietary")
    assert stand_in.repositories[REPO].at("main").files == {}
    assert stand_in.storage == {}
