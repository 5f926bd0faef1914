"""Every command on a tiny model, and what each says of bad input: one line, exit code 2."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_topic import save_corpora, save_parts, topic_texts
from transformers import AutoModelForCausalLM

from sae_unlearn import __version__, attach_guardrail
from sae_unlearn.cli import inputs as loading
from sae_unlearn.cli.inputs import drawn, read_texts
from sae_unlearn.cli.main import COMMANDS, main
from sae_unlearn.evaluation import Sweep, picture_guardrail, stored_picture
from sae_unlearn.files.terminal import printable, side_by_side, table


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, `sae`, texts, and the fitted guardrail `fitted`."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    save_corpora(folder)
    (folder / "more.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in topic_texts("forget", 8, seed=4)))
    (folder / "other.csv").write_text(
        "id,body\n" + "\n".join(f"{i},{t}" for i, t in enumerate(topic_texts("retain", 20, seed=4)))
    )
    assert main(fit_arguments(folder, folder / "fitted")) == 0
    return folder


def fit_arguments(folder, output, *more, sides=("forget.txt", "retain.json")):
    named = ["--model", folder / "model", "--sae", folder / "sae"]
    texts = ["--forget", folder / sides[0], "--retain", folder / sides[1]] if sides else []
    rest = [
        "--output",
        output,
        "--ratio-percentile",
        "95",
        "--clamp-scale",
        "4",
        "--store-probe",
        "--no-progress",
        *more,
    ]
    return [str(x) for x in ["fit", *named, *texts, *rest]]


def fails(capsys, arguments, *said):
    """The command ends with code 2 and one line on stderr that holds all of `said`."""
    capsys.readouterr()
    try:
        code = main([str(x) for x in arguments])
    except SystemExit as exit_:  # argparse
        code = exit_.code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("sae-unlearn")]
    assert code == 2
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    for part in said:
        assert part in lines[0]


# ------------------------------------------------------------------------------------------------------------------ fit


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
        ({"--forget": "broken.json"}, "broken.json is not JSON"),
        ({"--forget": "number.json"}, "holds a int"),
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
    fails(capsys, arguments, "somebody/texts is not a file", 'pip install ".[eval]"')


# ----------------------------------------------------------------------------------------------------------------- show


def test_show_tells_what_is_in_it(parts, capsys):
    assert main(["show", str(parts / "fitted")]) == 0
    printed = capsys.readouterr().out
    size = sum(
        (parts / "fitted" / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    for part in ("1 (its output)", "40: ", "jumprelu", "ratio above", "4 in unit residual", "holds rows", "AUROC"):
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
        ([f"--html={page}", model, retain, "--limit=0"], "--limit 0"),
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


# ---------------------------------------------------------------------------------------------------------------- check


def check(parts, folder, *more, model="model"):
    texts = ["--retain", parts / "other.csv", "--text-column", "body"] if "--retain" not in more else []
    return [str(x) for x in ["check", parts / model, folder, *texts, "--no-progress", *more]]


def test_check_finds_nothing_wrong(parts, capsys):
    code = main(check(parts, parts / "fitted"))
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "ok       base model" in printed
    assert "as at the fit (statistics equal to 0.000)" in printed
    assert "\nNo problems.\n" in printed


def test_check_with_forget_text(parts, capsys):
    arguments = check(parts, parts / "fitted", "--forget", parts / "more.jsonl", "--retain", parts / "retain.json")
    main(arguments)
    printed = capsys.readouterr().out
    assert "of 8 rows of the forget text" in printed
    assert "of 80 rows of the other text; at most 2.50%" in printed
    assert "measured here" in printed


def test_check_falls_back_on_the_shipped_texts(parts, capsys):
    main([str(x) for x in ["check", parts / "model", parts / "fitted", "--no-progress"]])
    assert "neutral paragraphs of this package" in capsys.readouterr().out


def test_check_tells_another_model(parts, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(parts / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "model")
    for file in (parts / "model").glob("token*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    assert main([str(x) for x in ["check", tmp_path / "model", parts / "fitted", "--no-progress"]]) == 1
    assert "PROBLEM  base model: The guardrail was fitted on" in capsys.readouterr().out


def test_check_refuses_bad_input(parts, tmp_path, capsys):
    fails(capsys, check(parts, tmp_path / "nothing"), "neither a folder here nor")
    fails(capsys, check(parts, parts / "fitted", "--forget", "none.txt"), "none.txt does not exist")
    fails(capsys, check(parts, parts / "fitted", model="missing"), "missing")


# ------------------------------------------------------------------------------------------------------------ all of it


def test_help_and_version(capsys):
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"sae-unlearn {__version__}\n"


def test_only_what_is_built_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = capsys.readouterr().out.split("COMMAND\n")[1].split("options:")[0]
    assert [line.split()[0] for line in commands.splitlines() if line.startswith("    ") and line[4] != " "] == [
        "demo",
        "saes",
        "train-sae",
        "scout",
        "fit",
        "train",
        "evaluate",
        "audit",
        "show",
        "tune",
        "chat",
        "playground",
        "check",
        "env",
    ]


def test_usage_errors_are_one_line(capsys):
    fails(capsys, ["fit"], "required: --model, --sae, --output", "see sae-unlearn fit --help")
    fails(capsys, ["learn"], "invalid choice: 'learn'")
    fails(capsys, [], "COMMAND")


def test_debug_shows_the_error(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        main(["show", str(tmp_path), "--debug"])


def test_an_unexpected_error_is_named(monkeypatch, capsys):
    def fail(args):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("sae_unlearn.cli.show.run", fail)
    fails(capsys, ["show", "x"], "RuntimeError: out of memory (--debug shows where)")


def test_interrupting_is_no_error_of_the_program(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_unlearn.cli.show.run", interrupt)
    assert main(["show", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_demo_without_its_packages_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAE_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sae_unlearn.demo.model._NEEDED", ("surely_not_installed",))
    fails(capsys, ["demo", "--output", tmp_path / "out"], 'pip install ".[demo]"')


@pytest.mark.slow
def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sae_unlearn", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"sae-unlearn {__version__}\n")


# --------------------------------------------------------------------------------------------------- texts and terminal


def test_texts_are_read_from_every_kind_of_file(tmp_path):
    expected = ["one\ntwo", "three"]
    (tmp_path / "a.txt").write_text("one\r\ntwo\r\n\r\n\r\n\r\nthree\n", newline="")
    (tmp_path / "a.json").write_text(json.dumps([expected[0], {"text": "three"}]))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(x) for x in expected) + "\n\n")
    (tmp_path / "a.csv").write_text('text\n"one\ntwo"\nthree\n')
    for name in ("a.txt", "a.json", "a.jsonl", "a.csv"):
        assert list(read_texts(str(tmp_path / name))) == expected, name


def test_texts_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('["one", 3]')
    with pytest.raises(ValueError, match=r"Row 2 of .*a\.json is a int"):
        read_texts(str(tmp_path / "a.json"))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_texts(str(tmp_path / "a.txt"))
    (tmp_path / "a.csv").write_text("text\n" + "long " * 40_000)
    with pytest.raises(ValueError, match=r"a\.csv .*CSV.*\.jsonl"):
        read_texts(str(tmp_path / "a.csv"))


def test_texts_are_read_as_editors_and_other_programs_write_them(tmp_path):
    texts = ["one\u2028still one", "two\x85still two"]  # line ends to Python, and not to JSON
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in texts), encoding="utf-8-sig")
    assert list(read_texts(str(tmp_path / "a.jsonl"))) == texts
    (tmp_path / "a.json").write_text(json.dumps(["one"]), encoding="utf-8-sig")
    (tmp_path / "a.csv").write_text("text,other\none,1\n", encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8-sig")
    for name in ("a.json", "a.csv", "a.txt"):
        assert list(read_texts(str(tmp_path / name))) == ["one"], name
    (tmp_path / "b.txt").write_text("one\n \t\ntwo\n\n\n\nthree")  # a line of blanks is a blank line
    assert list(read_texts(str(tmp_path / "b.txt"))) == ["one", "two", "three"]


def test_printable_shows_what_it_hides():
    assert printable("plain – text ü 漢") == "plain – text ü 漢"
    assert printable("a\x1b[1m\n\t\u202eb\x7f\u200b") == "a\\x1b[1m\\n\\t\\u202eb\\x7f\\u200b"
    assert printable("x" * 50, limit=10) == "x" * 7 + "..."


def test_tables_are_aligned():
    assert table([["", "n"], ["long title", "1"]], indent=1).splitlines() == [
        "              n",
        " ----------   -",
        " long title   1",
    ]
    assert side_by_side("a " * 30, "b", ("x", "y"), width=30).splitlines()[0] == "  x            | y"
