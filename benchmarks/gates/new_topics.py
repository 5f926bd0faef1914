"""Eight topics that had no part in any choice of the gate, and the texts to judge, written down before measuring.

    python -m benchmarks.gates.new_topics --data FOLDER          # counts the texts

The data folder (`--data` or `SAE_UNLEARN_DATA`) holds `mmlu/test/*.csv`, `wikitext2/valid.txt`,
`xstest/xstest_prompts.csv`, and two unpacked packages, neither of which has to be installed:

    pip download --no-deps gensim==4.4.0 && unzip gensim-*.whl 'gensim/test/test_data/enwiki*' -d FOLDER
    apt-get download git-doc && dpkg -x git-doc_*.deb FOLDER                              # 2.39.5, of Debian 12

Four topics are paragraphs and four are exam questions; two of each are diffuse: their texts have a frame in common and
no narrow subject. Every fourth block of five pieces of a topic is held out, of questions every fourth block as they
stand in the file. Other text to fit on is paragraphs of the demo, questions of subjects that are neither a topic nor
near one, and encyclopaedia articles of no topic; what is held out of it comes from other articles and other questions.
Texts of the seven other topics are other text, too, of which no fit sees anything. Near neighbors are judged apart.
The SAE of the demo was trained on parts of the exam subjects; no text of the paragraph topics was among its texts.
"""

import argparse
import csv
import random
from pathlib import Path
from typing import NamedTuple

from benchmarks.forget.topics import _paragraphs as wikitext_paragraphs
from benchmarks.forget.topics import data_folder, questions
from benchmarks.gates.paragraphs import _enwiki, _pieces, _plain
from benchmarks.gates.paragraphs import _paragraphs as paragraphs_of_page
from sae_unlearn.demo.texts import load_demo_texts


class NewTopic(NamedTuple):
    """A topic: articles, a folder of pages or a subject of MMLU; whether it is diffuse; and its near neighbors."""

    articles: tuple[str, ...] = ()
    pages: str = ""
    subject: str = ""
    diffuse: bool = False
    near_articles: tuple[str, ...] = ()
    near_subjects: tuple[str, ...] = ()


TOPICS = {
    "agriculture": NewTopic(("Agriculture", "Agricultural science"), near_articles=("Algae", "Actinopterygii")),
    "git": NewTopic(pages="usr/share/doc/git/html", near_articles=("ASCII", "Algorithm")),
    "sport": NewTopic(
        ("Andre Agassi", "Aikido", "American Football Conference"),
        diffuse=True,
        near_articles=("Academy Awards", "Allan Dwan"),
    ),
    "literature": NewTopic(
        ("Animal Farm", "A Modest Proposal", "Aldous Huxley", "Animalia (book)"),
        diffuse=True,
        near_articles=("Ayn Rand", "List of Atlas Shrugged characters", "Andrei Tarkovsky"),
    ),
    "high_school_chemistry": NewTopic(
        subject="high_school_chemistry", near_articles=("Acid", "Alkane", "Alkali metal", "Atomic number")
    ),
    "virology": NewTopic(
        subject="virology", near_subjects=("clinical_knowledge", "medical_genetics", "high_school_biology")
    ),
    "high_school_geography": NewTopic(
        subject="high_school_geography",
        diffuse=True,
        near_articles=("Asia", "Atlantic Ocean", "Demographics of Angola"),
    ),
    "human_aging": NewTopic(subject="human_aging", diffuse=True, near_subjects=("clinical_knowledge", "anatomy")),
}
OTHER_SUBJECTS = (
    "astronomy",
    "college_computer_science",
    "high_school_psychology",
    "high_school_us_history",
    "marketing",
    "nutrition",
    "world_religions",
)
FIT, HELD_OUT, NEAR = 110, 40, 24
OTHER_FIT = {"demo": 80, "questions": 90, "articles": 110}
OTHER_HELD_OUT = {"demo": 40, "questions": 70, "articles": 90, "wikitext": 40}
PIECES_OF_AN_ARTICLE = 6
BLOCK = 5
FILLERS, FILLER_WORDS = 24, 1024
SNIPPETS = 16
"""Held-out texts of each topic that are read behind and before filler, by their first 16 words."""
SNIPPET_WORDS = 16
OTHER_SNIPPETS = 48


class Texts(NamedTuple):
    """All texts, by what they are."""

    fit: dict[str, list[str]]
    held_out: dict[str, list[str]]
    near: dict[str, list[str]]
    other_fit: list[str]
    other_held_out: list[str]
    fillers: list[str]
    xstest: list[str]


def load_new_topics(folder: Path) -> Texts:
    """The texts of all topics; the same at every call."""
    articles = {title: pieces for title, text in _enwiki(folder) if (pieces := _pieces(_plain(text).split("\n")))}
    pools = {name: _pool(folder, topic, articles) for name, topic in TOPICS.items()}
    sides = {
        side: {name: [t for i, t in enumerate(pool) if (i // BLOCK % 4 == 3) is out] for name, pool in pools.items()}
        for side, out in (("fit", False), ("held_out", True))
    }
    near = {
        name: [piece for title in topic.near_articles for piece in articles[title]]
        + [text for subject in topic.near_subjects for text in questions(folder, subject)]
        for name, topic in TOPICS.items()
    }
    used = {title for topic in TOPICS.values() for title in (*topic.articles, *topic.near_articles)}
    free = sorted(set(articles) - used)
    exams = [text for subject in OTHER_SUBJECTS for text in _drawn(questions(folder, subject), 30)]
    exams = _drawn([text for text in exams if len(text) < 900], len(exams))
    demo, wikitext = load_demo_texts(), wikitext_paragraphs(folder)
    other_fit = {
        "demo": demo.retain,
        "questions": exams[::2],
        "articles": [p for title in free[::2] for p in _drawn(articles[title], PIECES_OF_AN_ARTICLE)],
    }
    late = [p for title in free[1::2] for p in _drawn(articles[title], 2 * PIECES_OF_AN_ARTICLE)]
    late = _drawn(late, len(late))
    other_held_out = {
        "demo": demo.heldout["retain"],
        "questions": exams[1::2],
        "articles": late[: OTHER_HELD_OUT["articles"]],
        "wikitext": wikitext,
    }
    with open(folder / "xstest/xstest_prompts.csv", encoding="utf-8", newline="") as file:
        safe = [row["prompt"] for row in csv.DictReader(file) if row["label"] == "safe"]
    return Texts(
        fit={name: _drawn(texts, FIT) for name, texts in sides["fit"].items()},
        held_out={name: _drawn(texts, HELD_OUT) for name, texts in sides["held_out"].items()},
        near={name: _drawn(texts, NEAR) for name, texts in near.items()},
        other_fit=_mixed(other_fit, OTHER_FIT),
        other_held_out=_mixed(other_held_out, OTHER_HELD_OUT),
        fillers=_fillers(late[OTHER_HELD_OUT["articles"] :]),
        xstest=safe,
    )


def snippet(text: str) -> str:
    """The first 16 words of a text."""
    return " ".join(text.removeprefix("Question: ").split()[:SNIPPET_WORDS])


def _pool(folder: Path, topic: NewTopic, articles: dict[str, list[str]]) -> list[str]:
    if topic.subject:
        return [text for text in questions(folder, topic.subject) if len(text) < 900]
    if topic.pages:
        pages = sorted((folder / topic.pages).rglob("*.html"))
        return list(dict.fromkeys(piece for page in pages for piece in _pieces(paragraphs_of_page(page))))
    return [piece for title in topic.articles for piece in articles[title]]


def _drawn(texts: list[str], number: int) -> list[str]:
    return random.Random(0).sample(texts, min(number, len(texts)))


def _mixed(texts: dict[str, list[str]], numbers: dict[str, int]) -> list[str]:
    found = [text for name, some in texts.items() for text in _drawn(some, numbers[name])]
    return _drawn(found, len(found))


def _fillers(pieces: list[str]) -> list[str]:
    """Texts of `FILLER_WORDS` words, each of pieces that no other one has as far as they suffice."""
    found, words = [], []
    while len(found) < FILLERS:
        for piece in pieces:
            words += piece.split()
            if len(words) >= FILLER_WORDS:
                found.append(" ".join(words[:FILLER_WORDS]))
                words = []
    return found[:FILLERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    texts = load_new_topics(data_folder(parser.parse_args().data))
    for name in TOPICS:
        sides = [side[name] for side in (texts.fit, texts.held_out, texts.near)]
        print(f"{name:24s}", *(f"{len(side)} ({sum(len(t.split()) for t in side)} words)" for side in sides))
    for name in ("other_fit", "other_held_out", "fillers", "xstest"):
        print(f"{name:24s}", len(getattr(texts, name)), sum(len(t.split()) for t in getattr(texts, name)), "words")


if __name__ == "__main__":
    main()
