"""Which layer tells the topic: pooled rows, the two scores, and the command."""

import json

import pytest
import torch
from tiny_topic import save_corpora, save_parts, tiny_parts, topic_texts

from sae_unlearn import SparseAutoencoder, scout
from sae_unlearn.cli.main import main
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.fit import layer_scores
from sae_unlearn.guardrail.fit.layer_scores import LayerScore, Scouting, _discriminant, _evidence, _pool
from sae_unlearn.options.scout import ScoutConfig
from sae_unlearn.stats import auc


FORGET, RETAIN = topic_texts("forget", 40, words=30), topic_texts("retain", 40, words=30)


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


def test_rows_are_pooled_over_content_tokens_without_outliers(parts, monkeypatch):
    model, tokenizer, sae = parts
    monkeypatch.setattr(layer_scores, "SHORT_TOKENS", 6)
    rows = [tokenizer(text).input_ids for text in [*FORGET[:3], *RETAIN[:2]]]
    pooled, medians = _pool(model, tokenizer, rows, [0, 1], [(1, sae)], ScoutConfig(batch_size=2, progress=False))
    for i, row in enumerate(rows):
        with torch.no_grad():
            hidden = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        for layer in (0, 1):
            x = hidden[layer + 1][0, 1:]  # BOS is left out
            torch.testing.assert_close(pooled[layer][0][i], x.mean(0), atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(pooled[layer][1][i], x[:5].mean(0), atol=1e-4, rtol=1e-3)
        rates = (sae.encode(hidden[2][0, 1:]) > 0).float().mean(0)
        torch.testing.assert_close(pooled["sae 0"][0][i], rates, atol=1e-4, rtol=1e-3)

    assert set(medians) == {0, 1}


def test_headroom_is_the_dose_over_the_shift_of_the_topic(parts):
    model, tokenizer, _ = parts
    texts = FORGET[:8], RETAIN[:8]
    [score] = scout(model, tokenizer, *texts, layers=[1], batch_size=16, progress=False).scores
    means, norms = [], []
    for corpus in texts:
        found = []
        for text in corpus:
            with torch.no_grad():
                ids = torch.tensor([tokenizer(text).input_ids])
                x = model(ids, output_hidden_states=True).hidden_states[2][0, 1:]
            found.append(x.mean(dim=0))
            norms.append(x.norm(dim=-1))
        means.append(torch.stack(found).mean(dim=0))
    expected = 0.5 * torch.cat(norms).median() / (means[0] - means[1]).norm()
    assert score.headroom == pytest.approx(float(expected), abs=2e-3)


def test_the_scores_tell_two_gaussians_apart_as_the_best_direction_does():
    draw = torch.Generator().manual_seed(0)
    topic = torch.arange(400) < 200
    x = torch.randn(400, 6, generator=draw) * torch.tensor([1.0, 5, 1, 1, 1, 1])
    x[topic, 0] += 2
    scores = x.double() @ _discriminant(x, topic)
    assert auc(scores[topic], scores[~topic]) > 0.9
    rates = torch.rand(400, 50, generator=draw) * 0.1
    rates[topic, 7] += 0.3
    weights = _evidence(rates, topic)
    assert weights.argmax() == 7
    assert int((weights > 0).sum()) <= 40


def test_a_topic_of_its_own_words_is_told_and_chance_is_chance(parts):
    model, tokenizer, sae = parts
    found = scout(model, tokenizer, FORGET, RETAIN, [sae], progress=False)
    depth = model.config.num_hidden_layers
    assert [(s.layer, s.sae is None) for s in found.scores] == [*((i, True) for i in range(depth)), (1, False)]
    assert all(score.auroc > 0.9 for score in found.scores)
    assert found.best.sae is not None
    assert found.rows == (40, 40)
    chance = scout(model, tokenizer, RETAIN, topic_texts("retain", 40, seed=5, words=30), layers=[1], progress=False)
    assert 0.2 < chance.scores[0].auroc < 0.8


@pytest.mark.parametrize(
    ("given", "message"),
    [({"layers": [99]}, "layers="), ({"max_rows": 1}, "max_rows"), ({"layers": []}, "^layers: ")],
)
def test_what_cannot_be_scouted_is_refused(parts, given, message):
    model, tokenizer, _ = parts
    with pytest.raises(GuardrailError, match=message):
        scout(model, tokenizer, FORGET, RETAIN, progress=False, **given)
    with pytest.raises(GuardrailError, match=r"^forget: .* 8"):
        scout(model, tokenizer, FORGET[:3], RETAIN, progress=False)


def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    save_parts(tmp_path)
    save_corpora(tmp_path)
    given = ["--model", tmp_path / "model", "--forget", tmp_path / "forget.txt", "--retain", tmp_path / "retain.json"]
    written = ["--picture", tmp_path / "layers.png", "--scores", tmp_path / "scores.json"]
    assert main([str(x) for x in ["scout", *given, *written, "--no-progress", "--saes", tmp_path / "sae"]]) == 0
    shown = capsys.readouterr().out
    assert "Best: layer 1" in shown
    assert "headroom" in shown
    assert f"fit --model {tmp_path / 'model'} --sae {tmp_path / 'sae'}" in shown
    assert (tmp_path / "layers.png").read_bytes()[:4] == b"\x89PNG"
    assert {row["layer"] for row in json.loads((tmp_path / "scores.json").read_text())} >= {0, 1}


@pytest.mark.parametrize(
    ("probes", "sae", "says", "step"),
    [
        ([0.6, 0.7], None, "No layer tells the topic", None),
        ([0.6, 0.7], 0.5, "No layer tells the topic", None),
        ([0.6, 0.9], 0.7, "layer 1 does, so take another SAE of it", "train-sae --model"),
        ([0.6, 0.9], 0.88, "Best: layer 0", "fit --model"),
    ],
)
def test_the_command_says_early_and_plainly_if_nothing_tells_the_topic(
    probes, sae, says, step, tmp_path, capsys, monkeypatch
):
    save_parts(tmp_path)
    save_corpora(tmp_path)
    scores = [LayerScore(layer, None, value, value, 2.0) for layer, value in enumerate(probes)]
    scores += [] if sae is None else [LayerScore(0, "sae", sae, sae, 2.0)]
    monkeypatch.setattr(layer_scores, "scout", lambda *args, **options: Scouting(tuple(scores), (40, 80)))
    given = ["--model", tmp_path / "model", "--forget", tmp_path / "forget.txt", "--retain", tmp_path / "retain.json"]
    given += [] if sae is None else ["--saes", tmp_path / "sae"]
    assert main([str(x) for x in ["scout", *given, "--no-progress"]]) == 0
    shown = capsys.readouterr().out
    assert says in shown
    assert ("Next: " in shown) == (step is not None)
    if step is not None:
        assert f"Next: sae-unlearn {step}" in shown


@pytest.mark.parametrize("approximate", [False, True])
def test_the_next_command_approximates_a_top_k_sae(approximate, monkeypatch, tmp_path, capsys):
    save_parts(tmp_path)
    save_corpora(tmp_path)
    if approximate:
        monkeypatch.setattr(SparseAutoencoder, "exact_in_slices", False)
    scores = (LayerScore(0, None, 0.9, 0.9, 2.0), LayerScore(0, "sae", 0.9, 0.9, 2.0))
    monkeypatch.setattr(layer_scores, "scout", lambda *args, **options: Scouting(scores, (40, 80)))
    given = ["--model", tmp_path / "model", "--forget", tmp_path / "forget.txt", "--retain", tmp_path / "retain.json"]
    assert main([str(x) for x in ["scout", *given, "--saes", tmp_path / "sae", "--no-progress"]]) == 0
    assert ("--topk threshold" in capsys.readouterr().out) == approximate
