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
    (folder / "repeated.txt").write_text("\n\n".join(forget[:3] * 10))
    (folder / "null.jsonl").write_text('{"text": null}\n' * 9)
    (folder / "facts.json").write_text('[{"prompt": "w3 w4"}]')
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{FIT} --forget one.txt --retain r.txt", "--forget: expected at least 8 texts, got 1"),
        (f"{FIT} --forget seven.txt --retain r.txt", "--forget: expected at least 8 texts, got 7"),
        (f"{FIT} --forget giant.txt --retain r.txt", "--forget: expected at least 8 texts, got 1"),
        (f"{FIT} --forget r.txt --retain r.txt", "each forget text is among the retain texts"),
        (f"{FIT} --forget empty --retain r.txt", "empty: expected files"),
        (f"{FIT} --forget f.txt --retain seven.txt", "retain=7 documents: expected at least 8"),
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
        # texts that are none, or say one thing many times
        (f"{FIT} --forget repeated.txt --retain r.txt", "--forget: expected at least 8 different texts, got 3"),
        (f"{FIT} --forget https://a.example/b.txt --retain r.txt", "https://a.example/b.txt: expected a file"),
        (f"{FIT} --forget null.jsonl --retain r.txt", "Row 1 of null.jsonl is nothing: expected a text"),
        ("evaluate --model model --forget facts.json --output out", "Facts need prompt and answers"),
        ("check model guardrail --forget f.txt --retain f.txt", "each forget text is among the retain texts"),
        # folders of another kind
        ("fit --model guardrail --sae sae --output out --forget f.txt --retain r.txt", "got the folder of a guardrail"),
        ("scout --model sae --forget f.txt --retain r.txt", "model='sae': expected a model, got the folder of an SAE"),
        (
            f"{SCOUT} --forget f.txt --retain r.txt --saes guardrail",
            "sae='guardrail': expected an SAE, got the folder of",
        ),
        ("fit --model model --sae model --output out --forget f.txt --retain r.txt", "got the folder of a model"),
        ("evaluate --model model --adapter sae --forget f.txt --output out", "adapter='sae': expected a guardrail"),
        ("playground me/model guardrail --space guardrail", "got the guardrail's own"),
        # outputs, named before anything is loaded
        ("fit --model model --sae sae --forget f.txt --retain r.txt --output=", "--output: expected a folder"),
        (f"{TUNE} --target-recall 0.5 --output=", "--output: expected a folder"),
        ("playground me/model guardrail --space=", "--space: expected a folder"),
        (f"{SCOUT} --forget f.txt --retain r.txt --scores none/x.json", "--scores none/x.json"),
        (
            f"{SCOUT} --forget f.txt --retain r.txt --picture x.jpg",
            "--picture x.jpg: expected a name that ends in .png",
        ),
        (f"{TUNE} --picture x.jpg", "--picture x.jpg: expected a name that ends in .png"),
        # values
        (f"{FIT} --forget f.txt --retain r.txt --device gpu0", "--device gpu0: expected a device of this machine"),
        (f"{FIT} --forget f.txt --retain r.txt --action refuse", "action='refuse': expected a message"),
        ("check model guardrail --batch-size 0", "--batch-size=0"),
        ("check --url http://localhost:1 --adapter guardrail --forget f.txt --timeout -1", "--timeout=-1"),
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

    with pytest.raises(UnlearnError, match=f"--port={port}"):
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
