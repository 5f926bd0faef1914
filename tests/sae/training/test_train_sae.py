"""Training of an SAE: rows, activations on disk, sizes, folding, measures, and the whole on a tiny model."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from oracles import oracle
from tiny_topic import save_corpora, save_parts, tiny_parts, tiny_tokenizer, topic_texts
from zoo import BOS

from sae_unlearn.cli.main import main
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.train_sae import SAETrainingConfig
from sae_unlearn.sae import SparseAutoencoder, train_sae
from sae_unlearn.sae.training import harvest as harvesting
from sae_unlearn.sae.training.folding import Standardization, folded, threshold_for
from sae_unlearn.sae.training.harvest import harvest, usual_tokens
from sae_unlearn.sae.training.measures import measure_sae, reconstruction
from sae_unlearn.sae.training.plan import plan_training
from sae_unlearn.sae.training.rows import rows_of_texts, split, texts_in


TEXTS = topic_texts("retain", 300, words=24) + topic_texts("forget", 100, words=24)


@pytest.fixture(scope="module")
def model():
    return tiny_parts()[0]


@pytest.fixture(scope="module")
def rows():
    return rows_of_texts(tiny_tokenizer(), TEXTS[:40], 16)


def test_rows_begin_as_the_tokenizer_begins_a_text_and_hold_the_texts_end_to_end(rows):
    tokenizer = tiny_tokenizer()
    assert rows.shape[1] == 16
    assert bool((rows[:, 0] == BOS).all())
    flat = [i for text in TEXTS[:40] for i in tokenizer(text, add_special_tokens=False).input_ids]
    assert rows[:, 1:].flatten().tolist() == flat[: rows[:, 1:].numel()]
    assert rows_of_texts(tokenizer, TEXTS, 16, 40).shape == (2, 16)


def test_held_out_texts_are_others():
    seen, aside = split(texts_in([{"body": text} for text in TEXTS], "body"), 0.1, 0)
    assert sorted(seen + aside) == sorted(TEXTS)
    assert len(aside) == 40
    with pytest.raises(UnlearnError, match=r"^texts\[0\]: .*got int"):
        texts_in([1, 2])


def test_the_harvest_holds_the_layers_output_and_continues(model, rows, tmp_path, monkeypatch):
    with torch.no_grad():
        wanted = model(rows, output_hidden_states=True).hidden_states[2][:, 1:]
    whole = harvest(model, 1, rows, tmp_path / "whole", progress=False)
    torch.testing.assert_close(torch.from_numpy(whole.values[:]), wanted)
    index = torch.tensor([7, 3, 7, 0])
    torch.testing.assert_close(whole.tokens(index), wanted.flatten(0, 1)[index])

    monkeypatch.setattr(harvesting, "EVERY", 1)
    calls = []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield from outputs(*given)

    outputs = harvesting.layer_outputs
    monkeypatch.setattr(harvesting, "layer_outputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harvest(model, 1, rows, tmp_path / "part", progress=False)
    again = harvest(model, 1, rows, tmp_path / "part", progress=False)
    assert len(calls) == 1 + -(-len(rows) // 8)  # no row is run twice, apart from the interrupted pass
    torch.testing.assert_close(torch.from_numpy(again.values[:]), wanted)
    with pytest.raises(UnlearnError, match="work_dir"):
        harvest(model, 0, rows, tmp_path / "part", progress=False)


def test_outlier_tokens_are_left_out():
    values = torch.ones(2, 5, 4)
    values[1, 2] = 3.0
    assert usual_tokens(harvesting.Activations(values.numpy())).tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_sizes_follow_from_the_tokens():
    demo = plan_training(SAETrainingConfig(), 18, 640, 3504)  # as the demo's SAE was trained
    assert (demo.layer, demo.d_sae, demo.l0, demo.steps) == (8, 4096, 40, 869)
    assert demo.disk_bytes == 3504 * 127 * 640 * 4
    small = plan_training(SAETrainingConfig(), 30, 576, 500)
    assert (small.d_sae, small.l0) == (1024, 36)
    assert plan_training(SAETrainingConfig(max_disk_gb=0.1), 30, 576, 10**6).disk_bytes <= 1e8
    [warning] = plan_training(SAETrainingConfig(d_sae=65536), 30, 576, 500).warnings()
    assert "4,194,304 tokens are enough" in warning
    assert [replace(small, seconds=s).describe().rpartition(", ")[2] for s in (20.0, 70.0, 420.0)] == [
        "less than a minute.",
        "about 1 minute.",
        "about 7 minutes.",
    ]
    with pytest.raises(UnlearnError, match="layer=30"):
        plan_training(SAETrainingConfig(layer=30), 30, 576, 500)
    with pytest.raises(UnlearnError, match="at least 2048"):
        plan_training(SAETrainingConfig(), 30, 576, 10)


@pytest.mark.parametrize("wrong", [{"held_out": 1.0}, {"context": 2}, {"epochs": 0.0}, {"active_features": True}])
def test_options_are_checked(wrong):
    with pytest.raises(UnlearnError, match=next(iter(wrong))):
        SAETrainingConfig(**wrong)


def test_the_threshold_leaves_l0_features_active():
    pre = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    theta = threshold_for(pre, 6)
    assert (pre > theta).float().sum(dim=-1).mean() == 6


def test_folding_is_the_same_sae_on_the_models_activations():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(200, 8, generator=draw, dtype=torch.float64) * torch.logspace(-1, 2, 8) + 5
    by = Standardization.of(h)
    x = by(h)
    assert x.norm(dim=-1).mean() == pytest.approx(8**0.5)
    weights = {
        "W_enc": torch.randn(8, 16, generator=draw, dtype=torch.float64),
        "b_enc": torch.randn(16, generator=draw, dtype=torch.float64),
        "W_dec": torch.randn(16, 8, generator=draw, dtype=torch.float64),
        "b_dec": torch.randn(8, generator=draw, dtype=torch.float64),
    }
    sae = folded(weights, 0.7, by, layer=3).double()
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    a = pre * (pre > 0.7)
    wanted = by.mean + by.scale * (a @ weights["W_dec"] + weights["b_dec"])
    assert bool(((sae.encode(h) > 0) == (a > 0)).all())
    torch.testing.assert_close(sae(h), wanted, rtol=1e-4, atol=1e-3)  # stored in float32
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(16, dtype=torch.float64))


def identity(width, layer=1):
    eye = torch.eye(width)
    zeros = torch.zeros(2 * width)
    both = torch.cat([eye, -eye], dim=1)
    return SparseAutoencoder(both, zeros, both.T.contiguous(), torch.zeros(width), architecture="standard", layer=layer)


def test_measures_of_a_perfect_sae_and_of_one_that_gives_the_mean(model, rows):
    width, rows = model.config.hidden_size, rows[:64]
    perfect = measure_sae(model, identity(width), 1, rows, progress=False)
    assert perfect["explained_variance"] == pytest.approx(1, abs=1e-4)
    assert perfect["loss_recovered"] == pytest.approx(1, abs=1e-3)
    assert perfect["loss_spliced"] == pytest.approx(perfect["loss"], abs=1e-3)
    with torch.no_grad():
        logits = model(rows).logits[:, 1:-1]
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 2:])
    assert perfect["loss_positions"] == rows[:, 2:].numel()
    assert perfect["loss"] == pytest.approx(float(wanted), abs=1e-4)

    x = torch.randn(100, 4) + 3
    nothing = SparseAutoencoder(
        torch.zeros(4, 6), torch.zeros(6), torch.zeros(6, 4), x.mean(0), architecture="standard"
    )
    found = reconstruction(nothing, x)
    assert found["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert (found["silent_features"], found["l0"]) == (6, 0)


@pytest.mark.slow
def test_a_small_sae_of_a_tiny_model_explains_it(model, tmp_path, caplog):
    oracle("sae_lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"context": 16, "batch_size": 64, "d_sae": 64, "active_features": 8, "epochs": 2.0}
        options["learning_rate"] = 3e-3
        sae = train_sae(model, tiny_tokenizer(), TEXTS, tmp_path / "sae", layer=1, progress=False, **options)
    assert " minute" in caplog.text
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert (again.layer, again.architecture, again.d_sae) == (1, "batchtopk", 64)
    assert torch.equal(again.W_enc, sae.W_enc)
    metrics = json.loads((tmp_path / "sae/metrics.json").read_text())
    held = metrics["held_out"]
    assert held["explained_variance"] > 0.3
    assert held["l0"] == pytest.approx(8, rel=0.4)
    assert metrics["training"]["tokens"] > 5000
    assert not (tmp_path / "sae-work").exists()

    from sae_lens import SAE

    theirs = SAE.load_from_disk(str(tmp_path / "sae"), device="cpu")
    h = torch.randn(20, sae.d_in)
    torch.testing.assert_close(theirs.encode(h), sae.encode(h), rtol=1e-4, atol=1e-4)


def test_the_command_estimates_and_trains(tmp_path, capsys, monkeypatch):
    oracle("sae_lens")
    monkeypatch.setattr("sae_unlearn.guardrail.fit.reconstruction.LEAST_EXPLAINED", -100.0)
    save_parts(tmp_path)
    save_corpora(tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    given = ["train-sae", "--model", tmp_path / "model", "--texts", tmp_path / "texts.txt", "--context", "16"]
    given += ["--batch-size", "256", "--d-sae", "64", "--active-features", "8", "--layer", "1", "--no-progress"]
    given += ["--epochs", "1"]
    given = [str(x) for x in [*given, "--output", tmp_path / "trained"]]
    assert main([*given, "--estimate"]) == 0
    assert " minute" in capsys.readouterr().out
    assert not (tmp_path / "trained").exists()
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "loss recovered" in shown
    assert f"--sae {tmp_path / 'trained'}" in shown.replace("\\", "/")
    monkeypatch.setattr("sae_unlearn.guardrail.fit.reconstruction.LEAST_EXPLAINED", 1.0)
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "too little for a guardrail" in shown
    assert f"Next: sae-unlearn train-sae --model {tmp_path / 'model'} --layer 1" in shown
    assert SparseAutoencoder.from_pretrained(tmp_path / "trained").layer == 1
