"""What a save or a push finds from before: what is ours makes room for what is new, and the rest stays."""

import json
from functools import partial

import pytest
import torch
from hub_requests import OWNER
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from tiny_report import report
from zoo import base_model, logits_of, plant, planted_config, token_ids

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, list_guardrails, push_bundle, save_bundle
from sae_unlearn.cards.card import REPORT_FILES
from sae_unlearn.evaluation import AuditReport, Comparison, Report
from sae_unlearn.guardrail import GuardedModel


REPO = "me/forget"
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
SINGLE = {CARD, CONFIG, WEIGHTS}
THEIRS = {"notes.md", "audit/notes.md", "biology/notes.md", "other/adapter_config.json", ".gitattributes"}
logits = partial(logits_of, input_ids=token_ids(24, 12))
audited = {"audit": report("Audit"), "evaluation": report("Evaluation")}


def single(**fields):
    model = GuardedModel(base_model("llama"), planted_config(**fields))
    plant(model)
    return model.eval()


def several(root, names=("biology", "person"), model=None):
    model = model or base_model("llama")
    for layer, name in enumerate(names, 1):
        single(layer=layer, threshold=0.1).save_pretrained(root / f"alone-{name}")
        model = attach_guardrail(model, root / f"alone-{name}", adapter_name=name)
    return model


def lora():
    torch.manual_seed(0)
    return get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()


def members(*names, beside=()):
    return {CARD, "bundle.json", *(f"{name}/{file}" for name in names for file in (*SINGLE, *beside))}


def push(model, **kwargs):
    """As a user does: one guardrail, or a bundle."""
    if len(model.peft_config) == 1:
        return model.push_to_hub(REPO, token=OWNER, **kwargs)
    return push_bundle(model, REPO, token=OWNER, **kwargs)


def save(model, folder):
    if len(model.peft_config) == 1:
        model.save_pretrained(folder)
    else:
        save_bundle(model, folder)


def files(hub, revision="main"):
    return hub.repositories[REPO].at(revision).files


@pytest.fixture
def theirs(stand_in):
    """A repository with files of its owner's own."""
    api = HfApi(token=OWNER)
    api.create_repo(REPO)
    for path in THEIRS:
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=path, repo_id=REPO)
    return stand_in


# ----------------------------------------------------------------------------------------------------------- on the Hub


def test_a_bundle_pushed_over_a_guardrail_is_what_is_attached(theirs, tmp_path):
    old = push(single(), **audited)
    assert {"audit/report.json", "evaluation/report.md"} <= files(theirs).keys()
    commits = len(theirs.repositories[REPO].commits)
    model = several(tmp_path)
    push(model)
    assert files(theirs).keys() == members("biology", "person") | THEIRS
    assert len(theirs.repositories[REPO].commits) == commits + 1
    with pytest.raises(GuardrailError, match=r"me/forget .*biology, person"):
        attach_guardrail(base_model("llama"), REPO)
    assert torch.equal(logits(attach_bundle(base_model("llama"), REPO)), logits(model))
    attach_guardrail(base_model("llama"), REPO, revision=old.oid)


def test_a_guardrail_pushed_over_a_bundle_is_what_is_attached(theirs, tmp_path):
    push(several(tmp_path, model=lora()), **audited)
    assert {"default/adapter_config.json", "default/README.md", "audit/report.json"} <= files(theirs).keys()
    model = single(threshold=0.3)
    push(model)
    assert files(theirs).keys() == SINGLE | THEIRS
    with pytest.raises(GuardrailError, match=r"(me/forget|/saved) .*bundle\.json"):
        attach_bundle(base_model("llama"), REPO)
    assert torch.equal(logits(attach_guardrail(base_model("llama"), REPO)), logits(model))


def test_a_second_push_without_an_audit_takes_the_first_one_s_away(theirs):
    push(single(), **audited)
    push(single(threshold=0.3))
    assert files(theirs).keys() == SINGLE | THEIRS
    assert "No audit was saved with this guardrail." in files(theirs)[CARD].decode()


def test_members_that_are_no_longer_in_the_bundle_go(theirs, tmp_path):
    push(several(tmp_path / "first"), members=None, **audited)
    push(several(tmp_path / "second", names=["person", "books"]))
    assert files(theirs).keys() == members("person", "books") | THEIRS


def test_a_pull_request_takes_away_what_lies_on_main(theirs, tmp_path):
    push(single(), **audited)
    push(several(tmp_path), create_pr=True)
    assert files(theirs).keys() >= SINGLE | {"audit/report.json"}
    assert files(theirs, "refs/pr/1").keys() == members("biology", "person") | THEIRS


def test_on_a_branch_what_lies_on_that_branch_goes(theirs, tmp_path):
    push(single())
    push(single(), revision="trial", **audited)
    push(several(tmp_path), revision="trial")
    assert files(theirs, "trial").keys() == members("biology", "person") | THEIRS
    assert files(theirs).keys() == SINGLE | THEIRS


def test_an_adapter_of_another_kind_is_not_ours(theirs, tmp_path):
    lora().save_pretrained(tmp_path / "lora")
    api = HfApi(token=OWNER)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "lora")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="audit/audit.json", repo_id=REPO)
    push(several(tmp_path))
    kept = {CONFIG, WEIGHTS, "audit/audit.json"}
    assert files(theirs).keys() == members("biology", "person") | THEIRS | kept
    assert json.loads(files(theirs)[CONFIG])["peft_type"] == "LORA"


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format_version": 1, "guardrails": ["../x"]})])
def test_a_bundle_json_that_is_none_is_not_ours(stand_in, content):
    api = HfApi(token=OWNER)
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=content.encode(), path_in_repo="bundle.json", repo_id=REPO)
    push(single())
    assert files(stand_in).keys() == SINGLE | {"bundle.json"}


def test_where_the_old_list_cannot_be_read_for_the_connection_nothing_is_committed(theirs, tmp_path):
    old = push(several(tmp_path)).oid
    theirs.break_at = r"/resolve/.*bundle\.json"
    with pytest.raises(GuardrailError, match=r"upload .*me/forget .*RemoteProtocolError"):
        push(single())
    assert theirs.repositories[REPO].at("main").oid == old


# ------------------------------------------------------------------------------------------------------------- a folder


def test_a_bundle_saved_over_a_guardrail_is_what_is_attached(tmp_path):
    folder = tmp_path / "saved"
    single().save_pretrained(folder, **audited)
    model = several(tmp_path)
    save(model, folder)
    with pytest.raises(GuardrailError, match=r"saved .*biology, person"):
        attach_guardrail(base_model("llama"), folder)
    assert torch.equal(logits(attach_bundle(base_model("llama"), folder)), logits(model))
    assert not (folder / WEIGHTS).exists()
    assert (folder / "audit" / "report.json").is_file()  # here, nothing would bring it back


def test_a_guardrail_saved_over_a_bundle_is_what_is_attached(tmp_path):
    folder = tmp_path / "saved"
    save(several(tmp_path), folder)
    model = single(threshold=0.3)
    save(model, folder)
    with pytest.raises(GuardrailError, match=r"(me/forget|/saved) .*bundle\.json"):
        attach_bundle(base_model("llama"), folder)
    assert torch.equal(logits(attach_guardrail(base_model("llama"), folder)), logits(model))
    assert [s.layer for s in list_guardrails(attach_guardrail(base_model("llama"), folder, subfolder="person"))] == [2]


def test_a_member_saved_into_its_folder_leaves_the_bundle(tmp_path):
    folder = tmp_path / "saved"
    save(several(tmp_path), folder)
    attach_guardrail(base_model("llama"), folder, subfolder="person", adapter_name="person").save_pretrained(folder)
    assert {s.name for s in list_guardrails(attach_bundle(base_model("llama"), folder))} == {"biology", "person"}


def test_a_bundle_saved_over_a_lora_leaves_it(tmp_path):
    folder = tmp_path / "saved"
    lora().save_pretrained(folder)
    weights = (folder / WEIGHTS).read_bytes()
    save(several(tmp_path), folder)
    assert (folder / WEIGHTS).read_bytes() == weights
    attach_bundle(base_model("llama"), folder)


def test_the_names_of_reports_are_those_that_are_written():
    names = {kind.stem for kind in (AuditReport, Comparison, Report)}
    kinds = ("json", "md", "png")
    assert set(REPORT_FILES) == {f"{part}/{name}.{kind}" for part in audited for name in names for kind in kinds}
