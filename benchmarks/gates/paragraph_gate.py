"""The windowed gate that judges each paragraph, too, beside the same gate without paragraphs.

    python -m benchmarks.gates.paragraph_gate choose --cache FOLDER --results FILE
    python -m benchmarks.gates.paragraph_gate encode --data FOLDER --documents FOLDER        # goes on where it was cut
    python -m benchmarks.gates.paragraph_gate run --data FOLDER --cache FOLDER --documents FOLDER --results FILE

`choose` reads the cache and the topics of `long_text.py`; its documents are running text, in which every 80th token
counts as the end of a paragraph. `run` reads the cache of `encoded_rows.py` and the documents of `encode`: paragraphs
of other text with blank lines between them, each run as one text. A document of fewer paragraphs is a part of one of
16. What is measured was written down before in `windowed_plan.md`.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.forget.compare import write
from benchmarks.forget.topics import data_folder
from benchmarks.gates import long_text, new_topics
from benchmarks.gates.encoded_rows import Encoder
from benchmarks.gates.new_topics import TOPICS
from benchmarks.gates.token_gates import ALPHA, MARGIN, Rows, Rowset
from benchmarks.gates.windowed_conditions import SHORT, Material, TokenReader, fit_rows, numbers
from sae_unlearn.backbone.blank_lines import blank_line_ids
from sae_unlearn.guardrail.fit.cross_calibration import (
    OutOfFold,
    at_lengths,
    calibrate,
    first_tokens,
    padded,
    statistics,
)
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.paragraphs import COUNTS, highest, values_of
from sae_unlearn.guardrail.fit.paragraphs import documents as joined_paragraphs
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, WindowedFit, fit_windowed
from sae_unlearn.guardrail.gate.windowed import WindowedParameters


ORDERS = 1
PARAGRAPH = 80
BEHIND = (64, 256, 1024)
DRAWS = 2


class Judge(NamedTuple):
    """A calibrated gate, and whether it reads where paragraphs end."""

    parameters: WindowedParameters
    threshold: float
    paragraphs: bool

    def fires(self, rows: Rows, ends: Rows) -> list[int]:
        """How many rows fire, and how many there are."""
        values = statistics(padded(rows, ends if self.paragraphs else None), self.parameters)
        return [int((values > self.threshold).sum()), len(rows)]


def documents(pieces: list[list[str]]) -> Iterator[str]:
    """Texts of the paragraphs, 16 each."""
    for texts in pieces:
        for at in range(0, len(texts) - COUNTS[-1] + 1, COUNTS[-1]):
            yield "\n\n".join(texts[at : at + COUNTS[-1]])


def encode(data: Path, folder: Path) -> None:
    """Run the documents whole, and keep where their paragraphs end."""
    held = new_topics.load_new_topics(data).other_held_out
    orders = [random.Random(f"paragraphs {order}").sample(held, len(held)) for order in range(ORDERS)]
    encoder = Encoder()
    blank = torch.tensor(blank_line_ids(encoder.tokenizer))
    for i, text in enumerate(documents(orders)):
        path = folder / f"document-{i}.pt"
        if not path.exists():
            row = encoder.tokenizer(text)["input_ids"]
            ids = torch.tensor(row)
            ends = torch.isin(ids, blank)[~torch.isin(ids, encoder.special)]
            torch.save(encoder.encoded([row], encoder.run([row]))._asdict() | {"ends": ends}, path)
            print(path.name, len(row), flush=True)


class Documents:
    """Encoded documents, and where their paragraphs end."""

    def __init__(self, sets: list[Rowset], ends: list[Tensor]) -> None:
        self.sets, self.ends = sets, ends

    @classmethod
    def of(cls, folder: Path) -> "Documents":
        """Those of `encode`."""
        found = [torch.load(folder / f"document-{i}.pt") for i in range(len([*folder.glob("document-*.pt")]))]
        ends = [each.pop("ends") for each in found]
        return cls([Rowset(each) for each in found], ends)

    @classmethod
    def running(cls, sets: dict[str, Rowset]) -> "Documents":
        """Running text, cut into paragraphs of `PARAGRAPH` tokens."""
        some = [sets[f"long-{i}"] for i in range(long_text.LONG_TEXTS)]
        lengths = [int(each.encoded.lengths.sum()) for each in some]
        return cls(some, [torch.arange(length) % PARAGRAPH == PARAGRAPH - 1 for length in lengths])

    def parts(self, score: Any, count: int) -> tuple[Rows, Rows]:
        """Scores and ends of the documents, cut after every `count` paragraphs; what is left over is left out."""
        rows: Rows = []
        ends: Rows = []
        for rowset, last in zip(self.sets, self.ends, strict=True):
            cuts = [0, *(last.nonzero()[:, 0] + 1).tolist()]
            cuts = (cuts if last[-1] else [*cuts, len(last)])[::count]
            values = score.of(rowset.active)
            for begin, end in itertools.pairwise(cuts):
                rows.append(values[begin:end])
                ends.append(last[begin:end])
        return rows, ends


def corpus(rows: Rowset) -> EncodedCorpus:
    """Rows of one paragraph each, as all texts of a fit here are."""
    lengths = rows.encoded.lengths.tolist()
    return EncodedCorpus(rows.active, torch.arange(len(lengths)), [at_end(length) for length in lengths])


def at_end(length: int) -> Tensor:
    """True at the last of `length` tokens."""
    return torch.arange(length) == length - 1


def without(scores: OutOfFold) -> OutOfFold:
    """The scores for a gate without paragraphs."""
    return scores._replace(topic_ends=None, other_ends=None)


def judges(scores: OutOfFold) -> dict[str, Judge]:
    """The gate without paragraphs, and with them, as fitted."""
    plain, made = calibrate(without(scores), ALPHA, MARGIN), calibrate(scores, ALPHA, MARGIN)
    return {
        "without": Judge(plain.parameters, plain.threshold, False),
        "with": Judge(made.parameters, made.threshold, True),
    }


def variants(scores: OutOfFold) -> dict[str, Judge]:
    """What the development topics choose from: how lambda is estimated, and whether the threshold rises for it."""
    found = judges(scores)
    plain = found["without"]
    values = values_of(scores.paragraphs, plain.parameters)
    counted = max(float(highest(values, count).double().quantile(1 - ALPHA)) for count in COUNTS)
    weights = {
        "tail": found["with"].parameters.message_weight,
        "counted": 1 / max(1.0, counted),
        "of the row": 1.0,
    }
    for name, weight in weights.items():
        parameters = plain.parameters._replace(message_weight=weight)
        found[f"{name}, threshold raised"] = Judge(parameters, raised(scores, parameters), True)
        found[f"{name}, threshold kept"] = Judge(parameters, plain.threshold, True)
    return found


def raised(scores: OutOfFold, parameters: WindowedParameters) -> float:
    """The threshold by the rule of the fit, over documents of paragraphs as well as over lengths."""
    ends = [scores.other_ends or [], scores.topic_ends or []]
    samples = [padded(*some) for some in zip(at_lengths(scores.other), at_lengths(ends[0]), strict=True)]
    samples += [padded(*joined_paragraphs(scores.paragraphs, count)) for count in COUNTS]
    lowest = max(float(statistics(some, parameters).double().quantile(1 - ALPHA)) for some in samples)
    topic = statistics(first_tokens(scores.topic, ends[1], SHORT), parameters)
    return lowest + MARGIN * max(0.0, float(topic.double().quantile(0.25)) - lowest)


def joined(filler: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A text after filler, which ends a paragraph, and the ends."""
    return torch.cat([filler, row]), torch.cat([at_end(len(filler)), torch.zeros(len(row), dtype=torch.bool)])


def chosen(topic: str, fit: WindowedFit, sets: dict[str, Rowset], docs: Documents) -> dict[str, Any]:
    """Figures of all variants on a development topic."""

    def scores(name: str) -> Rows:
        return sets[name].active.split(fit.score.of(sets[name].active))

    running = [scores(f"long-{i}")[0] for i in range(long_text.LONG_TEXTS)]
    held = [row for row in scores(f"{topic}-held_out-forget") if len(row)]
    parts = {count: docs.parts(fit.score, count) for count in COUNTS}
    behind = {}
    for tokens in (80, 320, 1280):
        pairs = [joined(running[i % len(running)][:tokens], row[:SHORT]) for i, row in enumerate(held)]
        behind[tokens] = [row for row, _ in pairs], [end for _, end in pairs]
    found = {}
    for name, judge in variants(fit.scores).items():
        figures = {f"documents of {count}": judge.fires(*parts[count]) for count in COUNTS}
        figures |= {f"caught behind {tokens}": judge.fires(*rows) for tokens, rows in behind.items()}
        figures["caught rows"] = judge.fires(held, [at_end(len(row)) for row in held])
        taken_out = judge._replace(paragraphs=False)
        figures |= {f"caught behind {n}, taken out": taken_out.fires(*rows) for n, rows in behind.items()}
        found[name] = figures | {"weight": judge.parameters.message_weight, "threshold": judge.threshold}
    return found


def choose(folder: Path, path: Path) -> dict[str, Any]:
    """All variants on the development topics and draws; goes on where it was cut."""
    sets = {path.stem: Rowset(torch.load(path)) for path in folder.glob("*.pt")}
    docs = Documents.running(sets)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for topic in long_text.TOPICS:
        for draw in range(len(found.get(topic, [])), long_text.DRAWS):
            corpora = [corpus(sets[name].rows(rows)) for name, rows in long_text.drawn(topic, draw, sets)]
            fit = fit_windowed(*corpora, fit_features, ALPHA, MARGIN, 8)
            found.setdefault(topic, []).append(chosen(topic, fit, sets, docs))
            write(path, found)
            print(topic, draw, flush=True)
    return found


def measured(topic: str, draw: int, material: Material, docs: Documents) -> dict[str, Any]:
    """Both gates on a draw of a topic of the report."""
    corpora = [corpus(material.sets[name].rows(rows)) for name, rows in fit_rows(topic, draw, material)]
    fit = fit_windowed(*corpora, fit_features, ALPHA, MARGIN, 8)
    reader = TokenReader(material, fit.score)  # type: ignore[arg-type]  # only its rows are read
    reader.scores = lambda name: material.sets[name].active.split(fit.score.of(material.sets[name].active))  # type: ignore[method-assign]
    mine, their = numbers(topic)
    held = "demo-held_out-forget" if topic == "demo" else f"{topic}-held_out"
    rows: dict[str, tuple[Rows, Rows]] = {"caught rows": _whole(reader.scores(held))}
    rows["alarms rows"] = _whole(reader.scores("other_held_out"))
    for words in BEHIND:
        for side, some in (("caught", mine), ("alarms", their)):
            rows[f"{side} behind {words}"] = _behind(reader, words, some)
    rows |= {f"alarms documents of {count}": docs.parts(fit.score, count) for count in COUNTS}
    found: dict[str, Any] = {"topic": topic, "draw": draw}
    for name, judge in judges(fit.scores).items():
        fires = {what: judge.fires(*some) for what, some in rows.items()}
        found[name] = {"fires": fires, "weight": judge.parameters.message_weight, "threshold": judge.threshold}
    return found


def _whole(rows: Rows) -> tuple[Rows, Rows]:
    some = [row for row in rows if len(row)]
    return some, [at_end(len(row)) for row in some]


def _behind(reader: TokenReader, words: int, chosen: list[int]) -> tuple[Rows, Rows]:
    """Texts behind filler. Their own first token is the blank line, which the filler's paragraph ends with."""
    fillers, cuts = reader.scores("behind fillers"), reader.material.cuts[str(words)]
    own, found = reader.scores(f"behind {words}"), []
    for i in chosen:
        k = i % len(fillers)
        found.append(joined(torch.cat([fillers[k][: cuts[k]], own[i][:1]]), own[i][1:]))
    return [row for row, _ in found], [end for _, end in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    encode_, choose_, run = (commands.add_parser(name) for name in ("encode", "choose", "run"))
    for command in (encode_, run):
        command.add_argument("--documents", type=Path, required=True)
        command.add_argument("--data")
    for command in (choose_, run):
        command.add_argument("--cache", type=Path, required=True)
        command.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "encode":
        encode(data_folder(args.data), args.documents)
    elif args.command == "choose":
        found = choose(args.cache, args.results)
        for name in found["demo"][0]:
            print(name)
            for what in found["demo"][0][name]:
                some = [draw[name][what] for draws in found.values() for draw in draws]
                shares = [each[0] / each[1] if isinstance(each, list) else each for each in some]
                print(f"  {what:32s} {mean(shares):.3f}  {min(shares):.3f} to {max(shares):.3f}")
    else:
        docs, material = Documents.of(args.documents), Material(args.cache, data_folder(args.data))
        found = json.loads(args.results.read_text()) if args.results.exists() else {"cells": []}
        for draw, topic in [*itertools.product(range(DRAWS), ("demo", *TOPICS))][len(found["cells"]) :]:
            found["cells"].append(measured(topic, draw, material, docs))
            write(args.results, found)
            print(topic, draw, flush=True)


if __name__ == "__main__":
    main()
