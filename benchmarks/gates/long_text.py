"""Choice of the length that the windowed gate's false alarms are held to, on development topics.

    python -m benchmarks.gates.long_text encode --data FOLDER --cache FOLDER       # goes on where it was cut
    python -m benchmarks.gates.long_text choose --data FOLDER --cache FOLDER --results FILE

Development topics are the demo's, `marketing` and `high_school_us_history`; none of them is a topic of `new_topics.py`,
and no text that is read there is read here, but the demo's. Long other text is running text of WikiText-2, read whole.
A topic's text behind other text is, as in the fit's own figures, its scores after those of running text.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.forget.compare import write
from benchmarks.forget.topics import data_folder, questions
from benchmarks.gates import new_topics
from benchmarks.gates.encoded_rows import Encoder
from benchmarks.gates.token_gates import ALPHA, MARGIN, Rows, Rowset
from sae_unlearn.demo.texts import load_demo_texts
from sae_unlearn.guardrail.fit.cross_calibration import calibrate, padded, statistics
from sae_unlearn.guardrail.fit.gate_score import fit_features
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, WindowedFit, fit_windowed


TOPICS = ("demo", "marketing", "high_school_us_history")
OTHER_SUBJECTS = [subject for subject in new_topics.OTHER_SUBJECTS if subject not in TOPICS]
FIT, HELD_OUT, OTHER_QUESTIONS, OTHER_PARAGRAPHS = 110, 40, 28, 140
LONG_TEXTS, LONG_TOKENS = 30, 1400
LENGTHS = (20, 40, 80, 160, 320, 640, 1280)
VARIANTS: dict[str, dict[str, int]] = {"rows of at most 320 tokens": {"longest": 1}}
VARIANTS |= {
    f"{longest} tokens, tail of {tail}": {"longest": longest, "tail": tail}
    for longest, tail in itertools.product((640, 1280), (10, 20, 40))
}
DRAWS, SHARE, SHORT = 4, 0.75, 20


def plans(encoder: Encoder, data: Path) -> Iterator[tuple[str, Any]]:
    """What is encoded, by name of the file."""
    demo, report = load_demo_texts(), new_topics.load_new_topics(data)
    seen = {*report.other_fit, *report.other_held_out}
    for side in ("forget", "retain"):
        yield f"demo-{side}", lambda side=side: encoder.texts(getattr(demo, side))
        yield f"demo-held_out-{side}", lambda side=side: encoder.texts(demo.heldout[side])
    free = {name: [t for t in questions(data, name) if t not in seen] for name in (*TOPICS[1:], *OTHER_SUBJECTS)}
    for name in TOPICS[1:]:
        some = random.Random(0).sample(free[name], min(FIT + HELD_OUT, len(free[name])))
        yield f"{name}-forget", lambda some=some: encoder.texts(some[:-HELD_OUT])
        yield f"{name}-held_out-forget", lambda some=some: encoder.texts(some[-HELD_OUT:])
    running, pieces = wikitext(data)
    asked = [text for name in OTHER_SUBJECTS for text in random.Random(0).sample(free[name], OTHER_QUESTIONS)]
    other = asked + pieces[:OTHER_PARAGRAPHS]
    yield "other", lambda: encoder.texts(other)
    for i in range(LONG_TEXTS):
        yield f"long-{i}", lambda i=i: long_text(encoder, running, i)


def wikitext(data: Path) -> tuple[list[str], list[str]]:
    """Running text in long pieces, and paragraphs of the text between them."""
    text = (data / "wikitext2/valid.txt").read_text(encoding="utf-8")
    text = text[: int(len(text) * 0.85)]  # the paragraphs that other benchmarks read come after it
    for before, after in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(before, after)
    size = len(text) // LONG_TEXTS
    running = [text[i * size : i * size + 5 * LONG_TOKENS] for i in range(LONG_TEXTS)]
    rest = [text[i * size + 5 * LONG_TOKENS : (i + 1) * size] for i in range(LONG_TEXTS)]
    pieces = [line[:600].rpartition(" ")[0] for part in rest for line in part.split("\n") if len(line) > 300]
    return running, random.Random(0).sample(pieces, len(pieces))


def long_text(encoder: Encoder, running: list[str], i: int) -> Any:
    """The beginning of a piece of running text, read whole."""
    row = encoder.tokenizer(running[i])["input_ids"][:LONG_TOKENS]
    return encoder.encoded([row], encoder.run([row]))


def drawn(topic: str, draw: int, sets: dict[str, Rowset]) -> Iterator[tuple[str, list[int]]]:
    """The names and rows of what a draw fits on."""
    for name in (f"{topic}-forget", "demo-retain" if topic == "demo" else "other"):
        number = len(sets[name].encoded.lengths)
        yield name, random.Random(f"{topic} {draw} {name}").sample(range(number), int(SHARE * number))


def fits(topic: str, sets: dict[str, Rowset]) -> Iterator[WindowedFit]:
    """The gate on some draws of the documents."""
    for draw in range(DRAWS):
        parts = [sets[name].rows(rows) for name, rows in drawn(topic, draw, sets)]
        corpora = [EncodedCorpus(part.active, torch.arange(len(part.encoded.lengths))) for part in parts]
        yield fit_windowed(*corpora, fit_features, ALPHA, MARGIN, 8)


def judged(values: Tensor, threshold: float) -> float:
    """The share of rows that fire."""
    return float((values > threshold).double().mean())


def measure(fit: WindowedFit, topic: str, sets: dict[str, Rowset], options: dict[str, Any]) -> dict[str, float]:
    """False alarms and catches by length of one calibration."""
    made = calibrate(fit.scores, ALPHA, MARGIN, **options)

    def scores(name: str) -> Rows:
        return sets[name].active.split(fit.score.of(sets[name].active))

    def fires(rows: Rows) -> float:
        return judged(statistics(padded(rows), made.parameters), made.threshold)

    running = [scores(f"long-{i}")[0] for i in range(LONG_TEXTS)]
    held = [row for row in scores(f"{topic}-held_out-forget") if len(row)]
    found = {"caught rows": fires(held), "caught short": fires([row[:SHORT] for row in held])}
    for length in LENGTHS:
        parts = [piece for row in running for piece in row.split(length) if len(piece) == length]
        found[f"alarms {length}"] = fires(parts)
        if length >= 80:
            behind = [torch.cat([parts[i % len(parts)], row[:SHORT]]) for i, row in enumerate(held)]
            found[f"caught behind {length}"] = fires(behind)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("encode", "choose"):
        command = commands.add_parser(name)
        command.add_argument("--data")
        command.add_argument("--cache", type=Path, required=True)
    command.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "encode":
        args.cache.mkdir(parents=True, exist_ok=True)
        for name, encode in plans(Encoder(), data_folder(args.data)):
            path = args.cache / f"{name}.pt"
            if not path.exists():
                torch.save(encode()._asdict(), path)
                print(name, flush=True)
        return
    sets = {path.stem: Rowset(torch.load(path)) for path in args.cache.glob("*.pt")}
    found: dict[str, Any] = {}
    for topic in TOPICS:
        made = [*fits(topic, sets)]
        for label, options in VARIANTS.items():
            found.setdefault(label, {})[topic] = [measure(fit, topic, sets, options) for fit in made]
    write(args.results, found)
    names = [*next(iter(found.values()))["demo"][0]]
    for label, topics in found.items():
        print(label, *(f"{n} {mean(d[n] for draws in topics.values() for d in draws):.3f}" for n in names), sep="\n  ")


if __name__ == "__main__":
    main()
