"""The memory of a fit: two corpora, each in a process of its own, and what is told of them."""

import json
import sys

import pytest

from benchmarks.speed import fitting_memory
from benchmarks.speed.fitting_memory import GROWTH, LENGTH, PROCEDURES, corpus, main


def test_it_fits_at_two_sizes_and_tells_their_memory_and_disk(tmp_path, monkeypatch, capsys):
    output = tmp_path / "memory.json"
    options = ["--model=thin", "--rows=40", "--max-held-out=8", "--d-sae=512", "--threads=1"]
    monkeypatch.setattr(sys, "argv", ["fitting_memory.py", *options, f"--output={output}"])
    asked = []

    def measured(args, procedure, rows):
        asked.append((args.model, args.max_held_out, args.d_sae, procedure, rows))
        return {"memory": rows * 10**6, "disk": 10**4}

    monkeypatch.setattr(fitting_memory, "measured", measured)
    main()
    assert asked == [("thin", 8, 512, name, rows) for name in PROCEDURES for rows in (40, 40 * GROWTH)]
    assert json.loads(output.read_text())["bytes"]["fit"]["400"] == {"memory": 400 * 10**6, "disk": 10**4}
    told = capsys.readouterr().out
    assert "10 times the corpus, fit: +360 MB, 10.000 of the memory" in told
    assert output.with_suffix(".txt").read_text() == told


@pytest.mark.slow
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_procedure_over_random_tokens_comes_to_its_end(procedure, monkeypatch, capsys):
    options = ["--model=thin", "--max-held-out=8", "--d-sae=512", "--only", procedure, "40"]
    monkeypatch.setattr(sys, "argv", ["fitting_memory.py", *options])
    main()
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] > 10**7
    activations = 2 * 40 * LENGTH * 512 * 4
    assert (found["disk"] > activations) is (procedure == "published")


def test_the_corpus_is_made_as_it_is_read():
    rows = corpus(50, 10**12, 0)
    assert next(rows)["input_ids"].shape == (1, fitting_memory.LENGTH)
