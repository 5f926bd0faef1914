"""Commands under a launcher, with two real processes: the same files as one, said once, and an end in every case."""

import json
import re
from pathlib import Path

import pytest
from launched import TORCHRUN, launch
from safetensors.torch import load_file
from test_cli import fit_arguments
from tiny_topic import save_adapters, save_corpora, topic_texts
from torch.distributed import destroy_process_group, init_process_group, is_initialized

from sae_unlearn.backbone import processes
from sae_unlearn.cli import main


COMMAND = ["-m", "sae_unlearn"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, `sae`, a guardrail, texts and facts."""
    folder = tmp_path_factory.mktemp("parts")
    save_adapters(folder)
    save_corpora(folder)
    facts = [{"prompt": text, "answers": ["w3", "w4"]} for text in topic_texts("forget", 11, words=5)]
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def evaluate_arguments(parts, output, *more):
    sides = ["--forget", parts / "facts.json", "--retain", parts / "retain.json", "--limit=21"]
    adapter = ["--adapter", parts / "guardrail", "--compare"]
    return [str(x) for x in ["evaluate", "--model", parts / "model", *adapter, *sides, "--output", output, *more]]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_fit_in_two_processes_writes_what_one_writes(parts, tmp_path):
    out, _ = launch(*COMMAND, *fit_arguments(parts, tmp_path / "two"))
    assert main(fit_arguments(parts, tmp_path / "one")) == 0
    assert out.count("Written to") == 1
    assert files(tmp_path / "two") == files(tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("one", "two"))
    for name in ("feature_ids", "threshold", "layer", "clamp_scale"):
        assert two[name] == one[name], name
    assert two.keys() == one.keys()
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert two.keys() == one.keys()
    assert all((two[name] - one[name]).abs().max() <= 1e-5 * one[name].abs().max() for name in one)


def test_evaluate_in_two_processes_writes_what_one_writes(parts, tmp_path):
    arguments = evaluate_arguments(parts, tmp_path / "two", "--max-new-tokens=3")
    out, err = launch(*COMMAND, *arguments, launcher=TORCHRUN)
    assert main(evaluate_arguments(parts, tmp_path / "one", "--max-new-tokens=3")) == 0
    assert out.count("Written to") == out.count("| side | data |") == 1
    assert files(tmp_path / "two") == files(tmp_path / "one")
    for name in ("report.json", "before/report.json", "comparison.json"):
        one, two = (json.loads((tmp_path / which / name).read_text()) for which in ("one", "two"))
        assert two == one, name
    ends = [line.rsplit("\r")[-1].split(":")[0] for line in err.split("\n") if "100%" in line]
    ends = [end for end in ends if end.startswith(("forget", "retain"))]  # each shown once, to its end
    before = ["forget, facts.json, recall", "retain, retain.json, perplexity"]
    assert ends == [*before, *before, "retain, retain.json, KL", "retain, retain.json, gate"]


def complaints(err):
    return [line for line in err.splitlines() if line.startswith("sae-unlearn")]


def test_bad_input_ends_all_processes_with_their_one_line(parts, tmp_path):
    arguments = fit_arguments(parts, tmp_path, "--forget=nowhere.txt")
    _, err = launch(*COMMAND, *arguments, launcher=TORCHRUN, fails=True, timeout=120)
    found = complaints(err)
    assert found  # the launcher ends the others as soon as one has ended
    assert all(re.fullmatch(r"sae-unlearn fit \(process [01]\): .*nowhere.txt.*", line) for line in found)


@pytest.mark.parametrize("how", ["raises", "killed"])
def test_where_one_process_breaks_down_all_end_and_nothing_is_written(parts, tmp_path, how):
    script = Path(__file__).with_name("failing_in_one_process.py")
    out, err = launch(script, how, *fit_arguments(parts, tmp_path / "out"), fails=True, timeout=120)
    assert "Written to" not in out
    assert files(tmp_path / "out") == set()
    if how == "raises":
        assert "sae-unlearn fit (process 1): the disk is gone" in complaints(err)
    others = [line for line in complaints(err) if "(process 0)" in line]
    assert all("Another process of this launch has ended" in line for line in others)


def test_what_is_not_shared_is_refused(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for command in ("show", "check", "audit", "demo"):
        needed = {"show": [parts / "guardrail"], "check": [parts / "model", parts / "guardrail"]}
        needed["audit"] = [f"--model={parts / 'model'}", f"--output={tmp_path}", "--forget=x"]
        assert main([command, *map(str, needed.get(command, []))]) == 2
        assert f"sae-unlearn {command} (process 1): {command} runs in one process" in capsys.readouterr().err


def test_a_group_that_was_there_before_is_left_alone(tmp_path):
    """A command that is called by a program with processes of its own."""
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with processes.leaving_launch():
            pass
        assert is_initialized()
    finally:
        destroy_process_group()


def test_a_group_that_is_joined_inside_is_left_also_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "process_count", lambda: 1 + is_initialized())

    @processes.leaving_launch()
    def command():
        init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        command()
    assert not is_initialized()
