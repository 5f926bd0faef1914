"""Commands under a launcher, with two real processes: the same files as one, said once, and an end in every case."""

import json
import re
from itertools import groupby
from pathlib import Path

import pytest
from commands import fit_arguments
from launched import TORCHRUN, launch
from safetensors.torch import load_file
from tiny_topic import save_adapters, save_corpora, topic_texts
from torch.distributed import destroy_process_group, init_process_group, is_initialized

from sae_unlearn.backbone import distributed as processes
from sae_unlearn.cli.main import main


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


@pytest.mark.slow
def test_fit_in_two_processes_writes_what_one_writes(parts, tmp_path):
    with_bars = [argument for argument in fit_arguments(parts, tmp_path / "two") if argument != "--no-progress"]
    out, err = launch(*COMMAND, *with_bars)
    assert main(fit_arguments(parts, tmp_path / "one")) == 0
    assert out.count("Written to") == 1
    bars = dict(re.findall(r"(\w+: \w+): +(\d+%)", err))
    assert len(bars) == 5  # features of both, the dose, and the stored rows of both
    assert set(bars.values()) == {"100%"}
    same_guardrail(tmp_path / "one", tmp_path / "two")


def same_guardrail(one, two):
    assert files(two) == files(one)
    first, second = (json.loads((folder / "adapter_config.json").read_text()) for folder in (one, two))
    for name in ("feature_ids", "threshold", "layer"):
        assert second[name] == first[name], name
    assert second["calibration"]["dose"] == first["calibration"]["dose"]
    assert second.keys() == first.keys()
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert second.keys() == first.keys()
    assert all((second[name] - first[name]).abs().max() <= 1e-5 * first[name].abs().max() for name in first)


@pytest.mark.slow
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
    # each is shown once, to its end; a line that another process writes in between may break its bar in two
    ends = [end for end, _ in groupby(end for end in ends if end.startswith(("forget", "retain")))]
    before = ["forget, facts.json, recall", "retain, retain.json, perplexity"]
    assert ends == [*before, *before, "retain, retain.json, KL", "retain, retain.json, gate"]


def complaints(err):
    return [line for line in err.splitlines() if line.startswith("sae-unlearn")]


@pytest.mark.slow
def test_bad_input_ends_all_processes_with_their_one_line(parts, tmp_path):
    arguments = fit_arguments(parts, tmp_path, "--forget=nowhere.txt")
    _, err = launch(*COMMAND, *arguments, launcher=TORCHRUN, fails=True)
    found = complaints(err)
    assert found  # the launcher ends the others as soon as one has ended
    assert all(re.fullmatch(r"sae-unlearn fit \(process [01]\): .*nowhere.txt.*", line) for line in found)


@pytest.mark.slow
def test_a_launch_that_was_killed_goes_on_from_what_it_had_written(parts, tmp_path):
    sides = tmp_path / "forget.txt", tmp_path / "retain.json"
    sides[0].write_text("\n\n".join(topic_texts("forget", 70, words=60)))
    sides[1].write_text(json.dumps(topic_texts("retain", 90, words=60)))
    arguments = fit_arguments(parts, tmp_path / "two", "--checkpoint-dir", tmp_path / "begun", sides=sides)
    script = Path(__file__).with_name("failing_in_one_process.py")
    launch(script, "killed", *arguments, fails=True)
    assert files(tmp_path / "begun") == {"fit-0-of-2.pt", "fit-1-of-2.pt"}
    launch(*COMMAND, *arguments)
    assert files(tmp_path / "begun") == set()
    assert main(fit_arguments(parts, tmp_path / "one", sides=sides)) == 0
    same_guardrail(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_where_one_process_breaks_down_all_end_and_nothing_is_written(parts, tmp_path, how):
    script = Path(__file__).with_name("failing_in_one_process.py")
    out, err = launch(script, how, *fit_arguments(parts, tmp_path / "out"), fails=True)
    assert "Written to" not in out
    assert files(tmp_path / "out") == set()
    if how == "raises":
        assert "sae-unlearn fit (process 1): the disk is gone" in complaints(err)
    others = [line for line in complaints(err) if "(process 0)" in line]
    assert all("of this launch has ended" in line for line in others)


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
