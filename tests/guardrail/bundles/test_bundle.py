"""A bundle: several guardrails, or guardrails and a LoRA, saved and attached as one, all of it or nothing."""

import json
import shutil
from functools import partial

import pytest
import torch
from config_fields import with_fields
from edited_json import edited_json
from hub_metadata import metadata_errors
from hub_stand_in import OWNER, READER, STRANGER
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_report import report
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import (
    GuardrailError,
    attach_bundle,
    attach_guardrail,
    list_guardrails,
    push_bundle,
    record_firings,
    save_bundle,
)
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.storage.card import CardDetails


IDS = token_ids(24, 12)
logits = partial(logits_of, input_ids=IDS)
REPO = "me/forget-several"


def with_guards(model, root, names=("biology", "person"), first=1, **fields):
    for layer, name in enumerate(names, first):
        guarded("llama", layer=layer, **fields).save_pretrained(root / f"alone-{name}")
        model = attach_guardrail(model, root / f"alone-{name}", adapter_name=name)
    return model


def lora():
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base_model("llama"), config, adapter_name="aligned").eval()


@pytest.fixture(scope="module", params=["guardrails", "a guardrail and a LoRA"])
def model(request, tmp_path_factory):
    """Not to be changed."""
    root = tmp_path_factory.mktemp("members")
    return with_guards(base_model("llama") if request.param == "guardrails" else lora(), root)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("saved") / "bundle"
    save_bundle(model, root)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """A copy for each test."""
    return shutil.copytree(saved, tmp_path / "bundle")


def assert_untouched(model, plain):
    assert not guard_layers(model)
    assert not hasattr(model, "peft_config")
    assert not any("lora" in name for name in model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model), plain)


def test_what_is_attached_is_what_was_saved(model, folder):
    again = attach_bundle(base_model("llama"), folder)
    assert torch.equal(logits(again), logits(model))
    assert {s.name for s in list_guardrails(again) if s.active} == {"biology", "person"}
    assert {s.subfolder for s in list_guardrails(again)} == {"biology", "person"}
    with record_firings(again) as firings:
        logits(again)
    assert {f.adapter for f in firings} == {"biology", "person"}


def test_saved_again_it_is_the_same(folder, tmp_path):
    save_bundle(attach_bundle(base_model("llama"), folder), tmp_path / "again")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors"))
    assert names == sorted(p.relative_to(tmp_path / "again").as_posix() for p in (tmp_path / "again").rglob("*.safet*"))
    for name in (*names, "bundle.json", "README.md"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_each_member_can_be_attached_alone_and_has_its_card(folder):
    one = attach_guardrail(base_model("llama"), folder, subfolder="person")
    several = attach_bundle(base_model("llama"), folder, names=["person"])
    assert torch.equal(logits(one), logits(several))
    assert [s.name for s in list_guardrails(several)] == ["person"]
    assert "## What it does not do" in (folder / "person" / "README.md").read_text()


def test_its_card_lists_the_members_and_the_hub_accepts_its_metadata(model, folder):
    card = ModelCard.load(folder / "README.md")
    assert metadata_errors(card.content) == ([], [])
    assert card.data.base_model == "tiny-llama"
    assert "| [biology](biology/README.md) | guardrail | 1 | 6 | 0.4 | clamp |" in card.text
    assert ("| [aligned](aligned/README.md) | LoRA |" in card.text) == ("aligned" in model.peft_config)
    assert "{{" not in card.text


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


def test_the_lora_has_a_card_that_says_what_is_known_of_it(tmp_path):
    save_bundle(with_guards(lora(), tmp_path), tmp_path / "bundle")
    card = ModelCard.load(tmp_path / "bundle" / "aligned" / "README.md")
    assert metadata_errors(card.content) == ([], [])
    assert "Rank 8, alpha 8." in card.text
    assert "`q_proj`, `v_proj`" in card.text
    assert "does not record how and on what it was trained" in card.text
    assert "{{" not in card.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aligned", "default"])
def test_reports_of_single_members_go_into_their_cards(tmp_path, name):
    torch.manual_seed(0)
    adapted = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"), adapter_name=name)
    model, root = with_guards(adapted, tmp_path), tmp_path / "bundle"
    members = {member: CardDetails(audit=report(f"Audit of {member}")) for member in ("person", name)}
    save_bundle(model, root, members=members, license="mit", audit=report("Audit of all"))
    for folder, title in (("", "all"), ("person", "person"), (name, name), ("biology", None)):
        card = (root / folder / "README.md").read_text()
        found = [line.removeprefix("### Audit of ") for line in card.splitlines() if line.startswith("### Audit of")]
        assert found == ([] if title is None else [title])
        assert (root / folder / "audit" / "report.json").is_file() == (title is not None)
    for wrong in ({"books": CardDetails()}, {"biology": report("Audit")}):
        with pytest.raises(GuardrailError, match=r"`CardDetails` .*\['biology', 'person',"):
            save_bundle(model, tmp_path / "other", members=wrong)
    assert not (tmp_path / "other").exists()


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
    with pytest.raises(GuardrailError, match=r"^The upload to me/forget-several "):
        push_bundle(model, REPO, token=OWNER)
    assert stand_in.repositories[REPO].at("main").files == {}
    with pytest.raises(GuardrailError, match=r"me/forget-several .*bundle\.json"):
        attach_bundle(base_model("llama"), REPO)
    stand_in.break_at = None
    push_bundle(model, REPO, token=OWNER)
    assert torch.equal(logits(attach_bundle(base_model("llama"), REPO)), logits(model))


def test_a_bundle_joins_guardrails_that_are_there(folder, tmp_path):
    if (folder / "aligned").is_dir():
        (folder / "bundle.json").write_text(json.dumps({"format_version": 1, "guardrails": ["biology"], "lora": None}))
    first = with_guards(base_model("llama"), tmp_path, ["books"], first=3)
    found = attach_bundle(first, folder)
    assert {"books", "biology"} <= {s.name for s in list_guardrails(found) if s.active}


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
    with pytest.raises(GuardrailError, match="is a bundle"):
        attach_guardrail(base_model("llama"), REPO)


def test_a_folder_of_guardrails_without_a_list_says_which_it_holds(folder):
    (folder / "bundle.json").unlink()
    with pytest.raises(GuardrailError, match=r"'biology', 'person'.*subfolder="):
        attach_guardrail(base_model("llama"), folder)


def stored(**changes):
    return edited_json("bundle.json", **changes)


def text(content):
    return lambda folder: (folder / "bundle.json").write_text(content)


LIES = {
    "no list": (lambda f: (f / "bundle.json").unlink(), r"has no bundle\.json"),
    "not json": (text("{"), "is not JSON"),
    "a list": (text("[1]"), "format_version=None"),
    "newer": (stored(format_version=2), "format_version=2"),
    "too long": (text(" " * 70_000), "more than 65536"),
    "no guardrail": (stored(guardrails=[]), "1 to 64 guardrails"),
    "too many": (stored(guardrails=[f"a{i}" for i in range(65)]), "1 to 64 guardrails"),
    "twice": (stored(guardrails=["biology", "biology"]), "biology"),
    "as LoRA too": (stored(lora="biology"), "biology"),
    "out of the folder": (stored(guardrails=["../alone-person"]), "alone-person"),
    "a number": (stored(guardrails=[7]), "lists 7"),
    "a member is missing": (lambda f: shutil.rmtree(f / "person"), r"has no adapter_config\.json"),
    "a member is broken": (
        lambda f: (f / "person" / "adapter_model.safetensors").write_bytes(b"x" * 2000),
        "valid safetensors|after it was saved",
    ),
    "a LoRA that is none": (stored(lora="person", guardrails=["biology"]), "peft_type='LORA'"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "message"), LIES.values(), ids=LIES)
def test_a_malformed_bundle_is_refused_and_the_model_left_untouched(lie, message, tmp_path):
    save_bundle(with_guards(base_model("llama"), tmp_path), tmp_path / "bundle")
    lie(tmp_path / "bundle")
    base = base_model("llama")
    plain = logits(base)
    with pytest.raises(GuardrailError, match=message):
        attach_bundle(base, tmp_path / "bundle")
    assert_untouched(base, plain)


def test_a_member_for_another_model_takes_the_others_back(folder):
    config = folder / "person" / "adapter_config.json"
    fields = json.loads(config.read_text())
    fields = {key: value for key, value in fields.items() if not key.endswith("sha256")}
    config.write_text(json.dumps(with_fields(fields, num_layers=9)))
    base = base_model("llama")
    plain = logits(base)
    with pytest.raises(GuardrailError):
        attach_bundle(base, folder)
    assert_untouched(base, plain)


@pytest.mark.slow
def test_of_a_compiled_model_the_model_inside_is_saved_and_guarded(model, tmp_path):
    save_bundle(torch.compile(model, backend="eager"), tmp_path / "bundle")
    again = attach_bundle(torch.compile(base_model("llama"), backend="eager"), tmp_path / "bundle")
    assert torch.equal(logits(again), logits(model))


def test_a_lora_that_imports_modules_is_refused(tmp_path):
    save_bundle(with_guards(lora(), tmp_path), tmp_path / "bundle")
    config = tmp_path / "bundle" / "aligned" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"megatron_config": {}, "megatron_core": "os"}))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"megatron_config": {"a": 1}}))
    base = base_model("llama")
    plain = logits(base)
    with pytest.raises(GuardrailError, match=r"^adapter_config\.json .*megatron_config="):
        attach_bundle(base, tmp_path / "bundle")
    assert_untouched(base, plain)


def test_a_lora_goes_on_a_model_without_adapters_only(tmp_path):
    save_bundle(with_guards(lora(), tmp_path), tmp_path / "bundle")
    first = with_guards(base_model("llama"), tmp_path, ["books"], first=3)
    before = logits(first)
    with pytest.raises(GuardrailError, match=r"^model: .*LoRA 'aligned'"):
        attach_bundle(first, tmp_path / "bundle")
    assert torch.equal(logits(first), before)
    attach_bundle(first, tmp_path / "bundle", names=["biology", "person"])
    assert {s.name for s in list_guardrails(first)} == {"books", "biology", "person"}


def test_names_that_are_taken_or_not_there_are_refused(tmp_path):
    save_bundle(with_guards(base_model("llama"), tmp_path), tmp_path / "bundle")
    first = with_guards(base_model("llama"), tmp_path, ["person"])
    before = logits(first)
    with pytest.raises(GuardrailError, match="adapter_name='person'"):
        attach_bundle(first, tmp_path / "bundle")
    assert [s.name for s in list_guardrails(first)] == ["person"]
    assert torch.equal(logits(first), before)
    for names in (["chemistry"], []):
        with pytest.raises(GuardrailError, match=r"names=.*\['biology', 'person'\]"):
            attach_bundle(base_model("llama"), tmp_path / "bundle", names=names)


def test_what_a_bundle_cannot_hold_is_refused(tmp_path):
    with pytest.raises(GuardrailError, match=r"^model: .*LlamaForCausalLM, got none"):
        save_bundle(base_model("llama"), tmp_path / "bundle")
    two = lora()
    two.add_adapter("other", LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(GuardrailError, match=r"\['aligned', 'other'\]"):
        save_bundle(with_guards(two, tmp_path), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
