"""A bundle: several guardrails, or guardrails and a LoRA, saved and attached as one, all of it or nothing."""

import json
import shutil

import pytest
import torch
from bundled import logits, lora, with_guards
from config_fields import with_fields
from edited_json import edited_json
from hub_metadata import metadata_errors
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tiny_report import report
from zoo import base_model

from sae_unlearn import GuardrailError, attach_bundle, attach_guardrail, list_guardrails, record_firings, save_bundle
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.storage.card import CardDetails


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


def test_a_bundle_joins_guardrails_that_are_there(folder, tmp_path):
    if (folder / "aligned").is_dir():
        (folder / "bundle.json").write_text(json.dumps({"format_version": 1, "guardrails": ["biology"], "lora": None}))
    first = with_guards(base_model("llama"), tmp_path, ["books"], first=3)
    found = attach_bundle(first, folder)
    assert {"books", "biology"} <= {s.name for s in list_guardrails(found) if s.active}


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
