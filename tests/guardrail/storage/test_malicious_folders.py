"""A folder from anybody: whatever is wrong with it, there is a typed error, nothing of it is run, and nothing of it is
left on the model; see the modules `malicious_*` for the lies."""

import os
import re
import shutil
from functools import partial

import pytest
import torch
from attached import fitted_by_hand, state_of
from lies import CONFIG, WEIGHTS, Payload, trace_of
from malicious_bundles import BUNDLES
from malicious_guardrails import GUARDRAILS
from malicious_saes import SAES
from peft import PeftModel
from watched import watching
from zoo import base_model, logits_of, planted_config, token_ids

from sae_unlearn import GuardrailError, SAEFormatError, UnlearnError, attach_guardrail, record_firings
from sae_unlearn.guardrail import attach, guard_layers


IDS = token_ids(8, 10)
logits = partial(logits_of, input_ids=IDS)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound folder, and the logits that it gives."""
    model = fitted_by_hand()
    folder = tmp_path_factory.mktemp("sound") / "guard"
    model.save_pretrained(folder)
    return folder, logits(model)


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound[0], tmp_path / "guard")
    return tmp_path / "guard"


def test_the_watch_sees_what_it_is_there_to_see(tmp_path):
    import pickle
    import socket

    with watching() as seen:
        pickle.loads(pickle.dumps(Payload(tmp_path / "x")))
        socket.socket().close()
        exec("import wave")
    assert {"pickle.find_class", "os.mkdir", "socket.__new__", "exec", "import"} <= {event for event, _ in seen}


@pytest.fixture(autouse=True, scope="module")
def _everything_is_imported(sound):
    """Modules that are loaded late, by us or by PEFT, are there before anybody watches."""
    attach_guardrail(base_model("llama"), sound[0])


def test_loading_a_sound_guardrail_opens_no_socket_and_imports_and_unpickles_nothing(folder, sound):
    model = base_model("llama")
    with watching() as seen:
        model = attach_guardrail(model, folder)
    assert seen == []
    assert torch.equal(logits(model), sound[1])


def test_the_hub_client_is_the_only_one_that_is_asked(monkeypatch):
    """What is no folder goes to `hf_hub_download`, and offline that opens no socket either."""
    from sae_unlearn.files import hub as source

    asked = []
    original = source.hf_hub_download
    monkeypatch.setattr(source, "hf_hub_download", lambda *a, **k: asked.append(a) or original(*a, **k))
    model = base_model("llama")
    with watching() as seen, pytest.raises(GuardrailError, match="not cached"):
        attach_guardrail(model, "nobody/nothing")
    assert asked == [("nobody/nothing", CONFIG), ("nobody/nothing", "bundle.json")]
    assert not [event for event, _ in seen if event.startswith(("socket.", "subprocess."))]


# ----------------------------------------------------------------------------------------------------------- guardrails


@pytest.mark.parametrize(("lie", "message"), GUARDRAILS.values(), ids=GUARDRAILS)
def test_a_guardrail_that_lies_is_refused_and_nothing_is_left_of_it(lie, message, folder):
    lie(folder)
    model = base_model("llama")
    before, plain = state_of(model), logits(model)
    with watching() as seen, pytest.raises(GuardrailError, match=message) as caught:
        attach_guardrail(model, folder)
    assert seen == []
    assert str(caught.value).isprintable()
    assert not trace_of(folder).exists()
    assert state_of(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "message"), GUARDRAILS.values(), ids=GUARDRAILS)
def test_a_guardrail_that_lies_does_not_disturb_one_that_works(lie, message, folder, sound):
    model = attach_guardrail(base_model("llama"), sound[0])
    before = state_of(model)
    lie(folder)
    with pytest.raises(GuardrailError, match=message):
        attach_guardrail(model, folder, adapter_name="second")
    assert state_of(model) == before
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), sound[1])


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "message"), GUARDRAILS.values(), ids=GUARDRAILS)
def test_through_pefts_own_loader_it_raises_or_guards(lie, message, folder):
    """PEFT reads folders by its own rules, warns where `attach_guardrail` refuses, and knows `.bin` files. Whatever it
    makes of a lie, text does not pass unguarded: loading raises, or the first call does, or the gate judges each row.
    """
    lie(folder)
    if (folder / CONFIG).is_fifo() or (folder / WEIGHTS).is_fifo() or (folder / WEIGHTS).is_char_device():
        pytest.skip("PEFT opens what is no file, and waits for ever")
    model = base_model("llama")
    try:
        model = PeftModel.from_pretrained(model, folder)
        with record_firings(model) as firings:
            found = logits(model)
    except Exception:
        pass
    else:
        assert {firing.row for firing in firings} == set(range(len(IDS)))
        assert any(firing.evidence for firing in firings)
        assert found.isfinite().all()
    assert not trace_of(folder).exists()


def test_a_subfolder_does_not_lead_out(folder):
    for subfolder in ("../guard", "/etc", "a/../../guard", "..\\guard"):
        with pytest.raises(GuardrailError, match=r"without '\.\.'"):
            attach_guardrail(base_model("llama"), folder, subfolder=subfolder)


@pytest.mark.parametrize("revision", [5, True, ["main"]])
def test_a_revision_is_text(revision):
    with pytest.raises(GuardrailError, match="revision="):
        attach_guardrail(base_model("llama"), "somebody/guard", revision=revision)


def test_links_inside_of_the_hubs_cache_are_followed(folder, sound, tmp_path):
    repo = tmp_path / "models--me--guard"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(folder / name, repo / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert torch.equal(logits(attach_guardrail(base_model("llama"), snapshot)), sound[1])
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to(folder / CONFIG)
    with pytest.raises(GuardrailError, match=re.escape(f"{folder / CONFIG}")):
        attach_guardrail(base_model("llama"), snapshot)


def test_a_card_with_script_is_never_read_and_never_passed_on(folder, tmp_path):
    (folder / "README.md").write_text("---\nlicense: !!python/object/apply:os.mkdir [x]\n---\n<script>evil()</script>")
    with watching() as seen:
        model = attach_guardrail(base_model("llama"), folder)
    assert seen == []
    model.save_pretrained(tmp_path / "again")
    assert "<script>" not in (tmp_path / "again" / "README.md").read_text()


def test_a_card_is_written_of_any_config(tmp_path):
    """PEFT's loaders do not refuse markup and values of a wrong type; the card shows them as text, or not at all."""
    bad = "`<script>evil()</script>\n# x ![x](https://evil.example/x.png) [y](//evil.example) https://evil.example | z"
    huge = 10**400
    for calibration in (
        {"warnings": [huge], "fire_rate_forget": {"rate": huge, "n": huge}, "auroc": huge, "edit_to_residual": huge},
        {"statistic_forget": [0.1, huge], "statistic_retain": [0.2], "threshold": huge, "curve": [{"threshold": huge}]},
        {"statistic_forget": [0.1], "statistic_retain": [0.2], "threshold": True, "auroc": True},
        {"warnings": [bad, 3], "fire_rate_forget": {"rate": bad, "low": None, "high": [], "n": "x"}, "auroc": bad},
        {"warnings": bad, "fire_rate_forget": 3, "edit_to_residual": bad},
        {"fire_rate_forget": {}},
    ):
        config = planted_config(
            calibration=calibration, sae_source={"id": bad, "architecture": [bad]}, base_model_name_or_path=bad
        )
        from sae_unlearn.guardrail.storage.card import write_card

        write_card(tmp_path, config, base_model("llama"))
        body = (tmp_path / "README.md").read_text().split("---", 2)[2]
        assert "<script>" not in body
        assert "\n# x" not in body
        for carried_out in ("![x]", "[y]", "https://evil"):
            assert carried_out not in re.sub("`[^`]*`", "", body)


def test_what_was_read_is_what_was_looked_at(folder, sound, tmp_path, monkeypatch):
    """The folder changes between the look at a file and its reading: into a pipe, which would wait for ever, and into
    a file without an end."""
    opened, swaps = os.open, []

    def swapping(path, *args, **kwargs):
        if swaps and str(path).endswith(CONFIG):
            swaps.pop()(path)
        return opened(path, *args, **kwargs)

    def by_a_pipe(path):
        os.unlink(path)
        os.mkfifo(path)

    monkeypatch.setattr(os, "open", swapping)
    for swap, message in (
        (by_a_pipe, "not a regular file"),
        (lambda path: os.truncate(path, 2**40), "more than 4194304"),
    ):
        shutil.rmtree(folder)
        shutil.copytree(sound[0], folder)
        swaps.append(swap)
        with pytest.raises(GuardrailError, match=message):
            attach_guardrail(base_model("llama"), folder)
        assert not swaps


def test_attaching_that_fails_half_way_is_taken_back(folder, sound, monkeypatch):
    def broken(layer, name, tensors):
        layer.guardrail(name).encoder.weight.data.copy_(tensors["encoder.weight"])
        raise MemoryError("no room")

    model = base_model("llama")
    before, plain = state_of(model), logits(model)
    guarded = attach_guardrail(base_model("llama"), sound[0])
    guarded_before = state_of(guarded)
    monkeypatch.setattr(attach, "_write", broken)
    with pytest.raises(MemoryError):
        attach_guardrail(model, folder)
    assert state_of(model) == before
    assert not guard_layers(model)
    assert torch.equal(logits(model), plain)
    with pytest.raises(MemoryError):
        attach_guardrail(guarded, folder, adapter_name="second")
    assert state_of(guarded) == guarded_before
    assert list(guarded.peft_config) == ["default"]
    assert torch.equal(logits(guarded), sound[1])


def test_every_refusal_is_of_one_family():
    assert issubclass(GuardrailError, UnlearnError)
    assert issubclass(SAEFormatError, UnlearnError)


def test_there_are_more_than_a_hundred_and_fifty_lies():
    assert len(GUARDRAILS) + len(SAES) + len(BUNDLES) > 150
