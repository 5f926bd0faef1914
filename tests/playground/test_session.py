"""The playground: answers with and without the guardrail, the gate's view, the settings, the page and the terminal."""

import html
import importlib.util
import json
import re

import pytest
import torch
from playground_setting import OTHER, PROMPT, tiny_session
from tiny_topic import save_adapters, tiny_parts, topic_texts

from sae_unlearn import fit_guardrail, record_firings
from sae_unlearn.backbone.adapters_off import guards_off
from sae_unlearn.cli.chat import show, switched
from sae_unlearn.cli.main import main
from sae_unlearn.cli.playground import PROMPT_TOKENS, _stored_prompts, _to_do
from sae_unlearn.errors import GuardrailError, UnlearnError
from sae_unlearn.playground.session import GateView, Session, TokenView
from sae_unlearn.playground.settings import Settings
from sae_unlearn.playground.space import write_space
from sae_unlearn.playground.view import gate_html, tokens_html, verdict_html


NEW = 6


@pytest.fixture(scope="module")
def session():
    return tiny_session()


def generated(session, prompt):
    ids = torch.tensor([session.prompt_ids(prompt)])
    out = session.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return session.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", [PROMPT, OTHER])
def test_both_answers_are_those_of_generate(session, prompt):
    settings = Settings(max_new_tokens=NEW)
    found = list(session.answers(prompt, settings))
    assert found[-1].done
    assert found[-1].guarded == generated(session, prompt)
    with guards_off(session.model):
        assert found[-1].bare == generated(session, prompt)
    lengths = [len(each.guarded) for each in found]
    assert lengths == sorted(lengths)


def test_the_guardrail_changes_answers_on_the_topic_only_and_can_be_switched_off(session):
    last = [list(session.answers(p, Settings(max_new_tokens=NEW)))[-1] for p in (PROMPT, OTHER)]
    assert last[0].gate.fired
    assert last[0].bare != last[0].guarded
    assert last[1].bare == last[1].guarded
    off = list(session.answers(PROMPT, Settings(max_new_tokens=NEW, enabled=False)))[-1]
    assert off.bare == off.guarded == last[0].bare


def test_prompts_to_try_are_the_beginnings_of_stored_rows(session):
    assert _stored_prompts(session) == []
    ids = {"forget": [session.prompt_ids(PROMPT)], "retain": [session.prompt_ids(OTHER)]}
    session.config.calibration["probe"] = ids
    try:
        found = _stored_prompts(session)
    finally:
        del session.config.calibration["probe"]
    assert [len(text.split()) for text in found] == [
        min(len(text.split()), PROMPT_TOKENS - 1) for text in (PROMPT, OTHER)
    ]
    assert all(given.startswith(text) for given, text in zip((PROMPT, OTHER), found, strict=True))


def test_the_gate_is_read_as_the_fit_reads_rows(session):
    ids = session.prompt_ids(PROMPT)
    seen = session.gate(ids)
    assert "".join(token.text for token in seen.tokens).replace(" ", "")  # every token has its text
    assert len(seen.tokens) == len(ids)
    assert seen.places[-1] == len(ids) - 1
    for place, value in zip(seen.places, seen.values, strict=True):
        assert session.gate(ids[: place + 1]).values[-1] == pytest.approx(value, abs=1e-5)
    hot = [token for token in seen.tokens if token.evidence > 0]
    assert hot
    assert all(token.features for token in hot)
    assert seen.tokens[0].evidence == 0  # BOS


def test_the_windowed_gate_is_read_too():
    model, tokenizer, sae = tiny_parts()
    texts = topic_texts("forget", 40), topic_texts("retain", 80)
    guarded = fit_guardrail(model, tokenizer, sae, *texts, statistic="windowed", progress=False)
    session = Session(guarded, tokenizer)
    ids = session.prompt_ids(PROMPT)
    seen = session.gate(ids)
    with record_firings(guarded) as firings, torch.no_grad():
        guarded(torch.tensor([ids]))
    assert seen.values[-1] == pytest.approx(firings[0].statistic, abs=1e-5)
    assert [token for token in seen.tokens if token.evidence]


def test_settings_hold_for_one_prompt_and_then_all_is_as_before(session):
    config = session.config
    clamp = session.layer.sae_guardrail_decoder[session.name].clamp
    before = (config.threshold, config.action, config.refusal_ids, clamp.clone())
    never = list(
        session.answers(PROMPT, Settings(max_new_tokens=NEW, threshold=session.config.threshold_bounds[1] * 0.999))
    )[-1]
    assert never.bare == never.guarded
    record = list(session.answers(PROMPT, Settings(max_new_tokens=NEW, action="record")))[-1]
    assert record.bare == record.guarded
    started = session.answers(PROMPT, Settings(max_new_tokens=NEW, threshold=0.0, dose=2.0))
    next(started)
    assert not torch.equal(clamp, before[3])
    started.close()  # as a browser that was closed
    assert (config.threshold, config.action, config.refusal_ids) == before[:3]
    assert torch.equal(clamp, before[3])


def test_what_cannot_be_asked_is_refused(session):
    with pytest.raises(UnlearnError, match=r"^prompt: .*got nothing"):
        list(session.answers("  "))
    with pytest.raises(UnlearnError, match="max_new_tokens=0"):
        Settings(max_new_tokens=0)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(UnlearnError, match=f"dose={wrong}"):
            Settings(dose=wrong)
    with pytest.raises(UnlearnError, match="threshold=nan"):
        Settings(threshold=float("nan"))
    with pytest.raises(UnlearnError, match="action='foo'"):
        Settings(action="foo")
    with pytest.raises(GuardrailError, match="other"):
        Session(session.model, session.tokenizer, "other")


def test_tokens_are_escaped_and_shaded():
    tokens = (TokenView("<script>", 2.0, ((7, 1.5),)), TokenView(" b", 0.0, ()))
    gate = GateView(tokens, (0, 1), (0.0, 2.0), 1.0)
    shown = tokens_html(gate)
    assert "<script>" not in shown
    assert html.escape("<script>") in shown
    assert "feature 7: 1.5" in shown
    assert "feature 7: 1.5 (&lt;b&gt;)" in tokens_html(gate, {7: "<b>"})
    assert re.findall(r"rgba\(213,94,0,([\d.]+)\)", shown) == ["0.65", "0.00"]
    assert "fires" in verdict_html(gate)
    assert 'role="img"' in gate_html(gate)
    assert "does not fire" in verdict_html(GateView(tokens, (0,), (0.5,), 1.0))


def test_lines_of_the_chat_change_settings():
    settings = Settings()
    assert switched(settings, "/off").enabled is False
    assert switched(settings, "/threshold 0.25").threshold == 0.25
    assert switched(settings, "/tokens 9").max_new_tokens == 9
    assert switched(settings, "/template off").chat_template is False
    assert switched(settings, "/action refuse").action == "refuse"
    for wrong in ("/nothing", "/dose", "/dose two", "/template maybe", "/off now"):
        with pytest.raises(UnlearnError, match="expected"):
            switched(settings, wrong)


@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs rich")
def test_the_terminal_shows_both_answers_and_the_gate(session):
    from rich.console import Console

    console = Console(record=True, width=100, highlight=False)
    show(console, session, PROMPT, Settings(max_new_tokens=NEW))
    shown = console.export_text()
    assert "bare" in shown
    assert "with the guardrail" in shown
    assert "gate fires" in shown


def test_a_space_holds_the_guardrail_and_no_local_model(tmp_path):
    (tmp_path / "guardrail").mkdir()
    (tmp_path / "guardrail/adapter_config.json").write_text("{}")
    given = {"labels": {7: "a label"}, "model_revision": "main", "adapter_subfolder": "inner"}
    write_space(tmp_path / "space", "me/model", str(tmp_path / "guardrail"), 'A "title"', ["one", "two"], **given)
    app = (tmp_path / "space/app.py").read_text()
    compile(app, "app.py", "exec")
    assert "load_model('me/model', revision='main')" in app
    assert "with_adapter(model, 'guardrail', revision=None, subfolder='inner')" in app
    assert "LABELS = {7: 'a label'}" in app
    assert (tmp_path / "space/guardrail/adapter_config.json").is_file()
    assert "playground" in (tmp_path / "space/requirements.txt").read_text()
    title = re.search(r"^title: (.*)$", (tmp_path / "space/README.md").read_text(), re.MULTILINE)[1]
    assert json.loads(title) == 'A "title"'
    with pytest.raises(UnlearnError, match="Hub id"):
        write_space(tmp_path / "other", str(tmp_path), "me/guardrail", "t", [])
    requirements = tmp_path / "space/requirements.txt"
    assert _to_do(requirements.parent).startswith("fill in") == ("YOUR-GIT-HOST" in requirements.read_text())
    requirements.write_text("sae-unlearn[playground] @ git+https://a.example/b@0")
    assert _to_do(requirements.parent) == "upload them to a Space"


def test_a_space_of_no_guardrail_is_not_written(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for adapter in (tmp_path / "empty", tmp_path / "nowhere"):
        assert main(["playground", "me/model", str(adapter), "--space", str(tmp_path / "space")]) == 2
        assert adapter.name in capsys.readouterr().err
        assert not (tmp_path / "space").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_the_page_answers(session):
    from sae_unlearn.playground.page import build_page

    page = build_page(session, "Title", [PROMPT])
    [answer, *_] = [f.fn for f in page.fns.values() if f.fn is not None and f.fn.__name__ == "answer"]
    *_, last = answer(PROMPT, True, "as fitted", session.config.tau, 1.0, NEW, False)
    assert last[0] != last[1]
    assert "The gate" in last[2]
    assert "su-tokens" in last[3]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs rich")
def test_the_command_answers_one_prompt(tmp_path, capsys):
    save_adapters(tmp_path)
    given = ["chat", str(tmp_path / "model"), str(tmp_path / "guardrail"), "--prompt", PROMPT, "--max-new-tokens", "4"]
    assert main(given) == 0
    assert "threshold" in capsys.readouterr().out


def test_the_gate_decides_on_the_prompt_as_a_whole_and_then_token_by_token(session):
    ids = session.prompt_ids(f"{PROMPT} {OTHER} {OTHER} {OTHER}")
    seen = session.gate(ids)
    assert max(seen.values) > seen.values[-1]  # it begins with the topic, and does not end with it
    assert seen.decides_from == len(ids) - 1
    assert seen.deciding == seen.values[-1]
    early = session.gate(ids, prompt=9)
    assert early.places[-1] - early.places[0] == len(ids) - 1
    assert early.deciding == max(v for place, v in zip(early.places, early.values, strict=True) if place >= 8)
    tokens = seen.tokens[:3]
    assert GateView(tokens, (0, 1, 2), (9.0, 5.0, 1.0), 4.0, 1).fired
    assert not GateView(tokens, (0, 1, 2), (9.0, 5.0, 1.0), 4.0, 1, sticky=False).fired
    assert not GateView(tokens, (0, 1, 2), (9.0, 5.0, 1.0), 6.0, 1).fired
