"""Inputs from which no command can make anything: one sentence that names the argument, and no folder left."""

import socket

import pytest
from tiny_topic import save_adapters, topic_texts

from sae_unlearn.cli.main import main


FIT = "fit --model model --sae sae --output out"
SCOUT = "scout --model model"
TUNE = "tune guardrail"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bad_input")
    save_adapters(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), folder / "guardrail")
    next(iter(model.peft_config.values())).calibration = None
    model.save_pretrained(folder / "unmeasured")
    forget, retain = topic_texts("forget", 40), topic_texts("retain", 60)
    written = {"f": forget, "r": retain, "one": forget[:1], "seven": forget[:7], "giant": [" ".join(forget * 20)]}
    for name, texts in written.items():
        (folder / f"{name}.txt").write_text("\n\n".join(texts))
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{FIT} --forget one.txt --retain r.txt", "--forget: expected at least 8 texts, got 1"),
        (f"{FIT} --forget seven.txt --retain r.txt", "--forget: expected at least 8 texts, got 7"),
        (f"{FIT} --forget giant.txt --retain r.txt", "--forget: expected at least 8 texts, got 1"),
        (f"{FIT} --forget r.txt --retain r.txt", "each forget text is among the retain texts"),
        (f"{FIT} --forget empty --retain r.txt", "empty holds no files"),
        (f"{FIT} --forget f.txt --retain seven.txt", "retain: 2 of its 7 rows"),
        (f"{FIT} --forget f.txt --retain r.txt --search --search-minutes 0", "minutes=0.0"),
        ("fit --model nomodel --sae sae --output out --forget f.txt --retain r.txt", "model='nomodel'"),
        (f"{SCOUT} --forget r.txt --retain r.txt", "each forget text is among the retain texts"),
        (f"{SCOUT} --forget f.txt --retain r.txt --picture none/x.png", "--picture none/x.png"),
        (f"{SCOUT} --forget one.txt --retain r.txt", "forget: expected at least 8 texts, got 1"),
        (f"{TUNE} --target-recall 2 --output out", "target_recall=2.0"),
        (f"{TUNE} --threshold -1", "threshold=-1.0: expected a number in [0.0"),
        (f"{TUNE} --target-recall 0.9 --output guardrail", "--in-place"),
        (f"{TUNE} --picture none/x.png", "--picture none/x.png"),
        (f"{TUNE} --picture empty", "--picture empty"),
        ("tune unmeasured", "unmeasured: expected a guardrail with the statistics"),
        ("tune unmeasured --threshold 1 --output out", "unmeasured: expected a guardrail with the statistics"),
        ("playground me/model guardrail --space f.txt", "--space f.txt"),
        ("saes  ", "MODEL: expected a Hub id"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(line, message, parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    before = sorted(parts.rglob("*"))
    command, _, rest = line.partition(" ")
    assert main([command, *(rest.split() or [" "]), "--no-progress"]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert "Now " not in out
    assert sorted(parts.rglob("*")) == before


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_named(port):
    from sae_unlearn.cli.playground import _check_address
    from sae_unlearn.errors import UnlearnError

    with pytest.raises(UnlearnError, match=f"--port {port}"):
        _check_address("127.0.0.1", port)


def test_a_port_in_use_and_an_address_elsewhere_are_named_before_the_model_is_loaded():
    from sae_unlearn.cli.playground import _check_address
    from sae_unlearn.errors import UnlearnError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnlearnError, match=f"--port {port}"):
            _check_address("127.0.0.1", port)
    _check_address("127.0.0.1", port)
    _check_address("127.0.0.1", None)
    with pytest.raises(UnlearnError, match=r"--host 192\.0\.2\.1"):
        _check_address("192.0.2.1", None)
