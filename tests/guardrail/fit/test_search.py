"""A search over fits: what it chooses, on which rows, within which time, and that its report had no part in it."""

import pytest
import torch
from tiny_topic import save_corpora, save_parts, tiny_parts, topic_texts

from sae_unlearn import fit_guardrail, search_guardrail
from sae_unlearn.backbone.tokens import read_corpus
from sae_unlearn.cli.main import main
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.fit import search as module
from sae_unlearn.guardrail.gate.offline import read_batch, unguarded_residuals


TOPIC, OTHER = topic_texts("forget", 60), topic_texts("retain", 120)


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


@pytest.fixture(scope="module")
def found():
    model, tokenizer, sae = tiny_parts()  # of its own: the other tests attach guardrails to `parts`
    silent = type(sae)(sae.W_enc, sae.b_enc - 1e6, sae.W_dec, sae.b_dec, "jumprelu", threshold=sae.threshold, layer=1)
    return search_guardrail(model, tokenizer, [silent, sae], TOPIC, OTHER, progress=False)


def test_candidates_vary_one_setting_at_a_time_and_the_best_is_taken(found):
    search = found.peft_config["default"].calibration["search"]
    settings = [(c["settings"]["statistic"], c["settings"]["num_features"]) for c in search["candidates"]]
    assert "silent" in search["candidates"][0]["refused"]
    assert settings[1:3] == [("windowed", 40), ("ratio", 40)]
    best = max(search["candidates"][1:3], key=lambda each: each["score"])["settings"]["statistic"]
    assert settings[3:] == [(best, 20), (best, 80)]
    chosen = search["candidates"][search["chosen"]]
    assert chosen["score"] == max(each.get("score", 0) for each in search["candidates"])
    config = found.peft_config["default"]
    assert config.statistic == chosen["settings"]["statistic"]
    assert config.num_features <= chosen["settings"]["num_features"]


def test_the_report_is_on_documents_that_no_fit_and_no_choice_has_seen(parts, monkeypatch):
    model, tokenizer, sae = parts
    seen = []
    fit = module._Search._fit

    def noted(self, candidate, on, aside, progress):
        used = (*on, aside) if not progress else on  # the last fit alone shows its progress
        seen.extend(text for parts in self.parts.values() for i in used for text in parts[i])
        return fit(self, candidate, on, aside, progress)

    monkeypatch.setattr(module._Search, "_fit", noted)
    monkeypatch.setattr(module, "tqdm", lambda *args, **options: __import__("contextlib").nullcontext(_Bar()))
    guarded = search_guardrail(model, tokenizer, sae, TOPIC, OTHER, num_features=20, statistic="windowed")
    config = guarded.peft_config["default"]
    kept = {role: texts[4::5] for role, texts in (("forget", TOPIC), ("retain", OTHER))}
    assert not {*kept["forget"], *kept["retain"]} & {*seen}
    assert {*TOPIC, *OTHER} - {*seen} == {*kept["forget"], *kept["retain"]}
    [layer] = [m for m in guarded.modules() if hasattr(m, "sae_guardrail_encoder")]
    for role, texts in kept.items():
        rows = [row for one in read_corpus(texts, tokenizer, role, 512) for row in one.rows]
        assert config.calibration[f"fire_rate_{role}"]["n"] == len(rows)
        values = torch.zeros(len(rows))
        for batch in unguarded_residuals(guarded.get_base_model(), rows, 1, 8):
            values[batch.index] = read_batch(batch, layer.sae_guardrail_encoder["default"], config).statistics
        assert config.calibration[f"statistic_{role}"] == pytest.approx(values.tolist(), abs=1e-4)
    guarded.unload()


class _Bar:
    def update(self, number=1):
        pass


def test_the_last_fit_has_all_documents_but_those_of_the_report(found):
    corpora = found.peft_config["default"].calibration["corpora"]
    assert corpora["forget"]["documents"] == 48
    assert corpora["retain"]["documents"] == 96
    assert corpora["forget"]["report_rows"] == 12
    assert corpora["retain"]["report_rows"] == 24


def test_no_candidate_is_begun_after_the_time(parts, monkeypatch):
    model, tokenizer, sae = parts
    now = [0.0]
    monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    fit = module._Search._fit

    def slow(self, *args):
        now[0] += 60.0
        return fit(self, *args)

    monkeypatch.setattr(module._Search, "_fit", slow)
    guarded = search_guardrail(model, tokenizer, sae, TOPIC, OTHER, minutes=2.5, progress=False)
    search = guarded.peft_config["default"].calibration["search"]
    assert len(search["candidates"]) == 2  # a third would end after 3 minutes
    assert [each["seconds"] for each in search["candidates"]] == [60.0, 60.0]
    guarded.unload()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"minutes": 0}, "minutes=0"),
        ({"features": [1, 2]}, "features="),
        ({"threshold": 0.5}, "threshold="),
        ({"preset": "faithful"}, "preset="),
        ({"forget": TOPIC[:39]}, "^forget: .*40"),
        ({"retain": OTHER[:20]}, "^retain: .*40"),
        ({"saes": []}, "^saes: "),
    ],
)
def test_what_leaves_nothing_to_search_is_refused(parts, options, match):
    model, tokenizer, sae = parts
    given = {"saes": sae, "forget": TOPIC, "retain": OTHER} | options
    with pytest.raises(GuardrailError, match=match):
        search_guardrail(model, tokenizer, given.pop("saes"), given.pop("forget"), given.pop("retain"), **given)


def test_a_search_in_which_nothing_can_be_fitted_says_so(parts):
    model, tokenizer, sae = parts
    silent = type(sae)(sae.W_enc, sae.b_enc - 1e6, sae.W_dec, sae.b_dec, "jumprelu", threshold=sae.threshold, layer=1)
    with pytest.raises(GuardrailError, match="silent"):
        search_guardrail(model, tokenizer, silent, TOPIC, OTHER, progress=False)
    assert not hasattr(model, "peft_config")
    assert fit_guardrail(model, tokenizer, sae, TOPIC, OTHER, progress=False).unload() is not None


@pytest.mark.slow
def test_the_command_prints_the_candidates(tmp_path, capsys):
    model, sae = save_parts(tmp_path)
    save_corpora(tmp_path)
    given = ["fit", "--model", str(model), "--sae", str(sae), "--forget", str(tmp_path / "forget.txt")]
    given += ["--retain", str(tmp_path / "retain.json"), "--output", str(tmp_path / "guard"), "--no-progress"]
    assert main([*given, "--search-minutes", "1"]) == 2
    assert "--search" in capsys.readouterr().err
    assert main([*given, "--search", "--search-minutes", "5", "--num-features", "20"]) == 0
    shown = capsys.readouterr().out
    assert "windowed" in shown
    assert "Verdict" in shown
