"""`sae-unlearn fit` on a tiny model, and what it says of bad input."""

import json
import sys

import pytest
from commands import fails, fit_arguments
from tiny_topic import topic_texts
from transformers import AutoModelForCausalLM

from sae_unlearn import attach_guardrail
from sae_unlearn.cli.main import main
from sae_unlearn.guardrail.tuning.verdict import Verdict


def test_fit_writes_adapter_card_and_picture(parts):
    names = {path.name for path in (parts / "fitted").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "README.md", "calibration.png"}
    model = AutoModelForCausalLM.from_pretrained(parts / "model")
    guarded = attach_guardrail(model, parts / "fitted")
    assert guarded.peft_config["default"].calibration["dose"] == {"unit": "residual", "scale": 4.0}


def test_fit_prints_its_calibration(parts, tmp_path, capsys):
    assert main(fit_arguments(parts, tmp_path, "--threshold-percentile", "80", "--num-features", "10")) == 0
    printed = capsys.readouterr().out
    for part in ("Calibration", "fires on forget text", "fires on retain text", "AUROC", "arnings", str(tmp_path)):
        assert part in printed
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(config["feature_ids"]) == 10
    assert config["calibration"]["threshold_percentile"] == 80


@pytest.mark.parametrize("ready", [True, False])
def test_fit_names_one_thing_to_do_next(parts, tmp_path, capsys, monkeypatch, ready):
    step = "Check it." if ready else "Give more topic text."
    monkeypatch.setattr("sae_unlearn.guardrail.tuning.verdict.judge", lambda *given: Verdict(ready, (), step, ready))
    assert main(fit_arguments(parts, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f"Next: {step}" in printed
    assert ("Next: sae-unlearn check" in printed) == ready


def test_fit_zero_shot(parts, tmp_path, capsys):
    more = ["--features", "1,2,5", "--threshold", "0.4", "--clamp-value", "-3"]
    arguments = [x for x in fit_arguments(parts, tmp_path, *more, sides=None) if x not in ("--clamp-scale", "4")]
    assert main(arguments) == 0
    assert "Nothing was measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "adapter_config.json").read_text())["feature_ids"] == [1, 2, 5]
    assert not (tmp_path / "calibration.png").exists()


def test_fit_from_a_dataset(parts, tmp_path):
    datasets = pytest.importorskip("datasets", reason='needs the extra: pip install ".[eval]"')
    rows = {"body": topic_texts("forget", 40)}
    datasets.DatasetDict({"few": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "topic")
    (tmp_path / "retain.csv").write_text("body\n" + "\n".join(topic_texts("retain", 80)))
    arguments = fit_arguments(
        parts, tmp_path / "out", "--forget-split", "few", "--text-column", "body", sides=("forget.txt", "retain.json")
    )
    arguments[arguments.index("--forget") + 1] = str(tmp_path / "topic")
    arguments[arguments.index("--retain") + 1] = str(tmp_path / "retain.csv")
    assert main(arguments) == 0
    saved = (parts / "fitted" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == saved


def test_fit_goes_on_without_matplotlib(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(fit_arguments(parts, tmp_path)) == 0
    assert 'no picture: matplotlib draws the picture and is not installed; run: pip install ".[' in (
        capsys.readouterr().out
    )
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--forget": "none.txt"}, "none.txt does not exist"),
        ({"--forget": "empty.txt"}, "empty.txt holds no texts"),
        ({"--forget": "text.docx"}, "'.docx'"),
        ({"--forget": "broken.json"}, "broken.json: expected JSON"),
        ({"--forget": "number.json"}, "number.json is a int"),
        ({"--forget": "column.jsonl"}, "has no 'text', only body. Pass --text-column"),
        ({"--retain": "few.txt"}, "retain"),
        ({"--clamp-scale": "-1"}, "clamp_scale=-1.0"),
        ({"--threshold": "1.5"}, "threshold=1.5 is outside"),
        ({"--num-features": "0"}, "num_features=0"),
        ({"--layer": "3"}, "layer=3, but the SAE reads the output of layer 1"),
        ({"--features": "a,b"}, "'a,b' is not a list of integers"),
        ({"--statistic": "mean"}, "invalid choice: 'mean'"),
        ({"--sae": "no/such/sae"}, "no/such/sae"),
        ({"--sae-subfolder": "elsewhere"}, "elsewhere"),
        ({"--output": "few.txt"}, "--output few.txt"),
        ({"--chat-template": None}, "no chat template"),
    ],
)
def test_fit_refuses_bad_input(parts, tmp_path, capsys, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n \n")
    (tmp_path / "text.docx").write_text("w3 w4")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "column.jsonl").write_text('{"body": "w3"}')
    (tmp_path / "few.txt").write_text("w3 w4 w5")
    arguments = fit_arguments(parts, tmp_path / "out")
    for name, value in change.items():
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name] if value is None else [name, value]
    fails(capsys, arguments, said)


def test_fit_refuses_a_model_that_is_not_there(parts, tmp_path, capsys):
    arguments = fit_arguments(parts, tmp_path)
    arguments[arguments.index("--model") + 1] = str(tmp_path / "nothing")
    fails(capsys, arguments, "nothing")


def test_a_dataset_without_datasets_names_the_extra(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    arguments = fit_arguments(parts, tmp_path)
    arguments[arguments.index("--forget") + 1] = "somebody/texts"
    fails(capsys, arguments, "source='somebody/texts': ", 'pip install ".[eval]"')
