"""The benchmark beside peers: its arms do what their names say, and what is missing is named."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import Gemma3TextConfig

from benchmarks.speed import models, peer_arms, peer_fits, peers
from benchmarks.speed.peer_traits import FIT_TRAITS, OURS, TRAITS


TINY = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}
STAND_IN = f"""
import torch

def {peer_arms.AUTHORS_FUNCTION}(resid, hook, sae, features, multiplier, threshold):
    assert sae.encode(resid).shape[-1] == 512 and features == list(range(20))
    return resid + multiplier

def {peer_fits.AUTHORS_STATISTICS}(tokens, model, sae, batch_size, layer, hook_name):
    hidden = model.run_with_cache(tokens, stop_at_layer=layer + 1, names_filter=hook_name)[1][hook_name]
    return sae.encode(hidden).sum()
"""
SAELENS = find_spec("sae_lens") is not None
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # transformers 5.24


@pytest.fixture(autouse=True)
def tiny(monkeypatch, one_thread):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    monkeypatch.setitem(models.SHAPES, "tiny", lambda: Gemma3TextConfig(**TINY, **heads))
    torch.manual_seed(0)


def run(monkeypatch, tmp_path, *options):
    output = tmp_path / "peers.json"
    fixed = ["--model=tiny", "--threads=1", "--seconds=0", "--least=2", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["peers.py", *fixed, *options])
    peers.main()
    return json.loads(output.read_text())["cells"]


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("authors") / "authors.py"
    file.write_text(STAND_IN)
    return file


def test_each_arm_is_timed_or_named_with_its_reason(monkeypatch, tmp_path, authors_file):
    cells = run(
        monkeypatch, tmp_path, "--width=512", "--cells", "step, batch 8", "--authors-hook",
        str(authors_file),
    )  # fmt: skip
    for cell in cells.values():
        assert {*cell["arms"], *cell["left_out"]} == set(TRAITS)
        assert not {*cell["arms"]} & {*cell["left_out"]}
        assert ("authors' hook" in cell["arms"]) is SAELENS
        assert cell["arms"][OURS]["ours"]["ratio"] == 1.0
        assert cell["arms"]["none"]["ratio"] == 1.0
    assert {name.split(",")[0] for name in cells["step, batch 8"]["left_out"]} <= {
        "repsteer", "SAELens SAE", "authors' hook",
    }  # fmt: skip
    edits = cells["step, batch 8"]["edits_one_token"]
    assert edits[OURS]
    assert not edits["guardrail, quiet"]
    assert not edits["none"]
    assert not SAELENS or (edits["authors' hook"] and edits["SAELens SAE"])


def test_without_its_file_the_authors_hook_is_left_out():
    left_out = peer_arms.missing_for("authors' hook", None)
    assert left_out in ("its file was not given", "sae_lens is not installed")
    assert peer_arms.missing_for("repsteer, direction", None) == (
        None if find_spec("repsteer") else "repsteer is not installed"
    )


def test_a_guardrail_that_does_not_fire_as_its_name_says_stops_the_run():
    made = peer_arms.arms(models.load("tiny", "cpu", torch.float32), 512, None).models
    peers.check_gates(made)
    with pytest.raises(SystemExit, match="guardrail, quiet"):
        peers.check_gates(made | {"guardrail, quiet": made[OURS]})


@pytest.mark.skipif(not SAELENS, reason="needs pip install sae-lens")
def test_the_saelens_arm_clamps_the_features_and_keeps_the_error():
    model = models.load("tiny", "cpu", torch.float32)
    sae = models.synthetic_sae(64, 512, "cpu", threshold=0.5)
    x, theirs = torch.randn(2, 3, 64), peer_arms.saelens_sae(sae)
    torch.testing.assert_close(theirs.encode(x), sae.encode(x))
    clamped = peer_arms.saelens_clamp(model, sae)
    seen = []
    layer = clamped.model.layers[models.middle(model)]
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    bare_seen = []
    model.model.layers[models.middle(model)].register_forward_hook(lambda *given: bare_seen.append(given[2]))
    ids = models.random_ids(model, 2, 5)
    with torch.no_grad():
        clamped(input_ids=ids), model(input_ids=ids)
    found, hidden = (each[0] if isinstance(each, tuple) else each for each in (seen[0], bare_seen[0]))
    wanted = hidden + (-1.0 - sae.encode(hidden)[..., : peer_arms.FEATURES]) @ sae.W_dec[: peer_arms.FEATURES]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_fits_are_timed_apart_from_their_regressions(monkeypatch, tmp_path, authors_file):
    options = ["--cells", "fit", "--rows=32", "--length=16", "--width=2048"]
    cell = run(monkeypatch, tmp_path, *options, "--authors-statistics", str(authors_file))["fit"]
    assert {*cell["arms"], *cell["left_out"]} == set(FIT_TRAITS)
    assert cell["rows"] == {"forget": 32, "retain": 32}
    assert cell["length"] == 16
    whole, less = (cell["arms"][name]["ms"] for name in ("fit", "fit without regressions"))
    assert 0 < 1000 * cell["regressions"]["seconds"] < whole
    assert 0 < less < whole
    assert ("authors' statistics" in cell["arms"]) is SAELENS
