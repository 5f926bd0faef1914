"""`sae-unlearn show`: what is in a guardrail's folder, as text and as a page."""

import json

import pytest
from commands import fails

from sae_unlearn import attach_guardrail
from sae_unlearn.cli import inputs as loading
from sae_unlearn.cli.inputs import drawn, read_texts
from sae_unlearn.cli.main import main
from sae_unlearn.evaluation import Sweep, picture_guardrail, stored_picture


def test_show_tells_what_is_in_it(parts, capsys):
    assert main(["show", str(parts / "fitted")]) == 0
    printed = capsys.readouterr().out
    size = sum(
        (parts / "fitted" / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    for part in ("1 (its output)", "40: ", "jumprelu", "windowed above", "4 in unit residual", "holds rows", "AUROC"):
        assert part in printed
    assert f"{size / 1e3:,.1f} kB" in printed
    assert "retain percentile" in printed


def test_show_loads_no_model_and_no_sae(parts, monkeypatch, capsys):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("sae_unlearn.SparseAutoencoder.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert main(["show", str(parts / "fitted")]) == 0


def hostile(parts, tmp_path, **fields):
    """A copy of the fitted guardrail whose config was changed."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((parts / "fitted" / name).read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | fields
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_show_neutralises_what_a_terminal_would_act_on(parts, tmp_path, capsys):
    bad = "\x1b[2J\x1b]0;owned\x07\r\n\u202egnp.exe\x9b1m"
    folder = hostile(
        parts,
        tmp_path,
        base_model_name_or_path=bad,
        sae_source={"id": bad, "architecture": [bad]},
        sae_unlearn_version=bad,
        calibration={"warnings": [bad, 3], "words": [bad, 3], "probe": bad, "fire_rate_forget": {"rate": 0.5, "n": 2}},
    )
    assert main(["show", folder]) == 0
    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert "\\x1b[2J" in printed


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, pytest.param(10**300, id="huge"), True, None])
def test_show_survives_values_of_any_type(parts, tmp_path, capsys, value):
    names = ("fire_rate_forget", "fire_rate_retain", "auroc", "curve", "warnings", "words", "edit_to_residual", "probe")
    assert main(["show", hostile(parts, tmp_path, calibration=dict.fromkeys(names, value))]) == 0
    rate = {"rate": value, "low": value, "high": value, "n": value}
    nested = {"fire_rate_forget": rate, "curve": [value, dict.fromkeys(("percentile", "threshold"), value)]}
    assert main(["show", hostile(parts, tmp_path, calibration=nested)]) == 0


def test_show_writes_a_page_without_a_model(parts, tmp_path, capsys):
    assert main(["show", str(parts / "fitted"), "--html", str(tmp_path / "page.html")]) == 0
    assert f"Page: {tmp_path / 'page.html'}" in capsys.readouterr().out
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html == stored_picture(parts / "fitted").to_html()


def test_show_writes_a_page_with_the_features_on_texts_and_keeps_the_sweep(parts, tmp_path, monkeypatch):
    html, sweep = tmp_path / "page.html", tmp_path / "sweep.json"
    page = ["show", parts / "fitted", f"--html={html}", f"--model={parts / 'model'}", f"--sweep={sweep}"]
    page += ["--forget", parts / "more.jsonl", "--retain", parts / "retain.json", "--limit=6", "--contexts=2"]
    page = [str(x) for x in [*page, "--no-progress"]]
    assert main(page) == 0
    first = html.read_text(encoding="utf-8")
    assert "From 6 forget texts" in first
    assert "Other doses and thresholds" in first
    model, tokenizer = loading.load_model(str(parts / "model"), device="cpu")
    texts = {
        role: drawn(list(read_texts(str(parts / name))), 6)
        for role, name in (("forget", "more.jsonl"), ("retain", "retain.json"))
    }
    guarded = attach_guardrail(model, parts / "fitted")
    picture = picture_guardrail(guarded, tokenizer, **texts, contexts=2, progress=False)
    assert picture.to_html() == first
    assert Sweep.load(sweep) == picture.sweep
    monkeypatch.setattr("sae_unlearn.evaluation.explorer.explorer.swept", None)  # not measured again
    assert main(page) == 0
    assert html.read_text(encoding="utf-8") == first
    assert main([*page[:3], page[4]]) == 0
    assert "Other doses and thresholds" in html.read_text(encoding="utf-8")
    sweep.unlink()
    assert main([*page, "--no-sweep"]) == 0
    assert not sweep.exists()
    assert "Other doses and thresholds" not in html.read_text(encoding="utf-8")


def test_show_refuses_a_page_that_cannot_be_made(parts, tmp_path, capsys):
    page, model, retain = tmp_path / "page.html", f"--model={parts / 'model'}", f"--retain={parts / 'retain.json'}"
    for options, said in (
        ([model], "Pass --html FILE"),
        ([f"--html={page}", retain], "--retain: "),
        ([f"--html={page}", model], "--model reads texts"),
        ([f"--html={page}", model, retain, "--limit=0"], "--limit=0"),
        ([f"--html={page}", f"--sweep={tmp_path / 'none.json'}"], "--sweep"),
        ([f"--html={tmp_path}"], "expected a file, got a folder"),
        ([f"--html={tmp_path / 'none' / 'page.html'}"], "does not exist"),
    ):
        fails(capsys, ["show", parts / "fitted", *options], said)
    assert not page.exists()


def test_show_refuses_what_is_no_guardrail(parts, tmp_path, capsys):
    fails(capsys, ["show", tmp_path], "has no adapter_config.json")
    fails(capsys, ["show", tmp_path / "nothing"], "neither a folder here nor")
    fails(capsys, ["show", "nobody/nothing"], "nobody/nothing is not a folder here")
    fails(capsys, ["show", parts / "model"], "adapter_config.json")
    fails(capsys, ["show", hostile(parts, tmp_path, **{"\x1b[31mfield": 1})], "Unknown key(s)", "\\x1b")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1234")
    fails(capsys, ["show", hostile_weights(parts, tmp_path)], "adapter_model.safetensors")


def hostile_weights(parts, tmp_path):
    hostile(parts, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    return tmp_path
