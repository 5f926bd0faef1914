"""What `windowed_gate.py` judges: rows, short text, text behind and before filler, and how a gate reads them."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gates.encoded_rows import AFTER, WORDS, facts, snippets
from benchmarks.gates.new_topics import OTHER_SNIPPETS, SNIPPETS, TOPICS, Texts, load_new_topics, snippet
from benchmarks.gates.token_gates import Gate, Rows, Rowset
from sae_unlearn.demo.texts import load_demo_texts


SHARE = 0.75
SHORT = 20


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
        """The text of snippet `i` behind a number of words."""
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
