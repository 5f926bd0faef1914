"""The memory of a fit: two corpora, each in a process of its own, and what is told of them."""

import json
import sys

import fitting_memory
from fitting_memory import GROWTH, corpus, main


def test_it_fits_at_two_sizes_and_tells_their_memory(tmp_path, monkeypatch, capsys):
    output = tmp_path / "memory.json"
    options = ["--model=thin", "--rows=40", "--max-held-out=8", "--d-sae=512", "--threads=1"]
    monkeypatch.setattr(sys, "argv", ["fitting_memory.py", *options, f"--output={output}"])
    asked = []

    def measured(args, rows):
        asked.append((args.model, args.max_held_out, args.d_sae, rows))
        return rows * 10**6

    monkeypatch.setattr(fitting_memory, "measured", measured)
    main()
    assert asked == [("thin", 8, 512, 40), ("thin", 8, 512, 40 * GROWTH)]
    assert json.loads(output.read_text())["peak_bytes"] == {"40": 40 * 10**6, "400": 400 * 10**6}
    assert "10 times the corpus: +360 MB, 10.000 of the memory" in capsys.readouterr().out


def test_a_fit_of_random_tokens_comes_to_its_end(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["fitting_memory.py", "--model=thin", "--only=40", "--max-held-out=8", "--d-sae=512"]
    )
    main()
    assert int(capsys.readouterr().out) > 10**7


def test_the_corpus_is_made_as_it_is_read():
    rows = corpus(50, 10**12, 0)
    assert next(rows)["input_ids"].shape == (1, fitting_memory.LENGTH)
