"""Topics of real paragraphs for the benchmarks: Wikipedia articles and chapters of manuals.

The SAE of the demo saw none of these texts, but for two of the fresh topics. The data folder (`--data` or
`SAE_UNLEARN_DATA`) holds two unpacked packages, neither of which has to be installed:

    pip download --no-deps gensim==4.4.0 && unzip gensim-*.whl 'gensim/test/test_data/enwiki*' -d FOLDER
    apt-get download postgresql-doc-15 gimp-help-en          # 15.20 and 2.10.34, of Debian 12
    for package in *.deb; do dpkg -x $package FOLDER; done

gensim's test data has 106 whole articles of the English Wikipedia, from A to Azerbaijan. The SAE was trained on most
of WikiText-2's validation articles.

A topic is a few articles to fit on and others, which have no part in the fit, to report on. Paragraphs of more than
500 characters are cut at the ends of sentences, so that most rows are 40 to 150 tokens. Other text is the articles of
the other topics, the articles of no topic (every other one of them for the fit), and the demo's paragraphs; what is
held out comes from articles that had no part in the fit, near neighbors included: alchemy for chemistry.

Before any measurement `random.Random(0)` drew three of the seven encyclopaedic topics and one of the two manuals for
validation; the others are reported.

Fresh topics, for defaults that were changed after those reports, were written down before they were measured. They need
three more packages of Debian 12, unpacked the same way: anarchism (15.3, essays), gnucash-docs (4.13, an English guide
to bookkeeping) and r-doc-html (4.2.2). The SAE had seen most of the first two.

In those topics the held-out text is of other articles: mathematics is fitted on algorithms and reported on the abacus.
The second fresh topics, also written down before a measurement, hold out text of the same articles: every fourth block
of five pieces, every third page of a manual. Packages: lilypond-doc-html (2.24.1), grass-doc (8.2.1), apache2-doc
(2.4.68; for the windowed gate 2.4.71).
"""

import bz2
import html
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.forget.topics import FIT_PARAGRAPHS, Topic
from sae_unlearn.demo.texts import load_demo_texts


ENWIKI = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
PIECE = (220, 500)  # characters of a piece, at least and about at most
PIECES_OF_AN_ARTICLE = 12  # at most, where the article is other text
OTHER_FIT = {"demo": 80, "articles": 180}
OTHER_HELD_OUT = {"demo": 25, "articles": 75}


class Subject(NamedTuple):
    """The articles of a topic, and by which words the demo's paragraphs on it are known (those are not other text)."""

    fit: tuple[str, ...]
    held_out: tuple[str, ...]
    words: str


class Articles(NamedTuple):
    """The articles of a topic, of which every fourth block of pieces is held out, and the words as above."""

    titles: tuple[str, ...]
    words: str


class Manual(NamedTuple):
    """The folder of a topic's pages, the words as above, and which article is neither topic nor other text."""

    folder: str
    words: str
    left_out: str = ""


ENCYCLOPAEDIC = {
    "spaceflight": Subject(("Apollo 8", "Apollo 11"), ("Astronaut",), r"Apollo 11|astronaut|rocket|spacecraft"),
    "chemistry": Subject(
        ("Alkali metal", "Acid", "Atomic number"),
        ("Alkane",),
        r"\b[Aa]cids?\b|\blye\b|[Cc]atalyst|[Cc]hemi|compounds\b|[Ee]lectrolysis|periodic table|[Tt]itrat|Aluminium|"
        r"metal salts|iron rust|Distillation",
    ),
    "philosophy": Subject(
        ("Aristotle", "Altruism", "Ayn Rand"),
        ("Arthur Schopenhauer",),
        r"[Pp]hilosoph|Kant\b|Utilitarian|Aristotle",
    ),
    "greek_mythology": Subject(("Apollo",), ("Achilles",), r"[Mm]yth|Apollo\b(?! 11)|goddess|Homer\b|Dionysus"),
    "countries": Subject(
        (
            "Azerbaijan",
            "Albania",
            "Angola",
            "Demographics of Angola",
            "Economy of Angola",
            "Foreign relations of Angola",
            "Politics of Angola",
            "Angolan Armed Forces",
            "Transport in Angola",
        ),
        ("Afghanistan", "Algeria", "Andorra", "Aruba"),
        r"Brazil|Iceland",
    ),
    "american_history": Subject(
        ("American Revolutionary War", "Abraham Lincoln"),
        ("Articles of Confederation", "Albert Sidney Johnston"),
        r"constitution of the United States|Thanksgiving|American Revolution|Lincoln",
    ),
    "animals": Subject(
        ("Amphibian", "Actinopterygii", "Agnostida"),
        ("Aardvark", "Aardwolf"),
        r"\b[Cc]ranes\b|[Oo]tters|[Hh]edgehog|[Ww]hale watching|warblers|watch birds|aquarium",
    ),
}
MANUALS = {
    "postgresql": Manual("usr/share/doc/postgresql-doc-15/html", r"[Dd]atabase"),
    "gimp": Manual("usr/share/gimp/2.0/help/en", r"pixel|photograph"),
}
FRESH_ENCYCLOPAEDIC = {
    "american_states": Subject(("Alaska",), ("Alabama",), r"Alaska|Alabama"),
    "mathematics": Subject(
        ("Algorithm", "Analysis of variance"),
        ("Abacus", "Arithmetic mean"),
        r"[Mm]athemat|\b[Aa]lgebra|[Gg]eometr|[Ss]tatistic|[Pp]robabilit|equation|triangle",
    ),
}
FRESH_MANUALS = {
    "anarchism": Manual("usr/share/doc/anarchism/html", r"[Aa]narchis|[Ss]ocialis", "Anarchism"),
    "bookkeeping": Manual(
        "usr/share/doc/gnucash-docs/gnucash-guide-en", r"[Aa]ccountan|[Bb]ookkeep|compound interest|central bank"
    ),
    "r": Manual("usr/share/R/doc/manual", r"[Ss]tatistic|[Ss]oftware|computing"),
}


SECOND_ENCYCLOPAEDIC = {
    "medicine": Articles(
        ("Abortion", "Anatomy", "Autism"), r"[Mm]edic|[Dd]isease|[Pp]atient|hospital|\b[Bb]rain|\b[Cc]ells?\b|[Bb]lood"
    ),
    "film": Articles(
        (
            "Academy Award for Best Production Design",
            "Academy Awards",
            "Actrius",
            "Allan Dwan",
            "Andrei Tarkovsky",
            "Animation",
        ),
        r"\b[Ff]ilm|[Cc]inema|movie|actor|actress",
    ),
}
SECOND_MANUALS = {
    "engraving": Manual(
        "usr/share/doc/lilypond/html/Documentation/notation", r"[Mm]usic|\b[Ss]ong|violin|piano|orchestra"
    ),
    "geography": Manual("usr/share/doc/grass-doc/html", r"\b[Mm]aps?\b|satellite|[Gg]eograph"),
    "web_server": Manual("usr/share/doc/apache2-doc/manual/en", r"[Ww]eb|[Ii]nternet|server|browser"),
}
BLOCK = 5  # pieces that stay together when articles are split


def draw(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """So many of the names, at random but always the same."""
    return tuple(sorted(random.Random(0).sample(names, number)))


VALIDATION_TOPICS = draw(tuple(ENCYCLOPAEDIC), 3) + draw(tuple(MANUALS), 1)
REPORT_TOPICS = tuple(n for n in (*ENCYCLOPAEDIC, *MANUALS) if n not in VALIDATION_TOPICS)
FRESH_TOPICS = (*FRESH_ENCYCLOPAEDIC, *FRESH_MANUALS)
SECOND_TOPICS = (*SECOND_ENCYCLOPAEDIC, *SECOND_MANUALS)
_LATE_MANUALS = FRESH_MANUALS | SECOND_MANUALS  # each is read only where it is the topic, so that other text is as ever


def load_paragraph_topic(folder: Path, name: str, held_out: int = 40, seed: int = 0) -> Topic:
    """One topic with 130 paragraphs to fit on, and other text."""
    shuffle = random.Random(seed).shuffle
    articles = _articles(folder, name)
    fit_titles, held_titles = _titles(articles)
    topic = {
        side: [piece for title in sorted(titles) for piece in articles[title]] for side, titles in _of(name).items()
    }
    sides = {"fit": fit_titles, "held_out": held_titles}
    subject = _subject(name)
    left_out = {Manual: lambda: {subject.left_out}, Articles: lambda: subject.titles, Subject: tuple}[type(subject)]()
    not_other = set().union(*_of(name).values(), left_out)
    other = {
        side: [piece for title in sorted(titles - not_other) for piece in _some(articles[title], shuffle)]
        for side, titles in sides.items()
    }
    demo = load_demo_texts()
    words = re.compile(subject.words)
    mine = {
        side: [t for t in texts if not words.search(t)]
        for side, texts in {"fit": demo.retain, "held_out": demo.heldout["retain"]}.items()
    }
    for texts in (*topic.values(), *other.values(), *mine.values()):
        shuffle(texts)
    other_fit = mine["fit"][: OTHER_FIT["demo"]] + other["fit"][: OTHER_FIT["articles"]]
    other_held_out = mine["held_out"][: OTHER_HELD_OUT["demo"]] + other["held_out"][: OTHER_HELD_OUT["articles"]]
    shuffle(other_fit)  # the fit takes documents for its parts in turn
    shuffle(other_held_out)
    return Topic(
        name,
        topic["fit"][:FIT_PARAGRAPHS],
        topic["held_out"][:held_out],
        other_fit,
        other_held_out[: held_out * 5 // 2],
    )


def _subject(name: str) -> Subject | Articles | Manual:
    return (ENCYCLOPAEDIC | FRESH_ENCYCLOPAEDIC | SECOND_ENCYCLOPAEDIC | MANUALS | _LATE_MANUALS)[name]


def _of(name: str) -> dict[str, set[str]]:
    subject = _subject(name)
    if not isinstance(subject, Subject):
        return {"fit": {f"{name}, fit"}, "held_out": {f"{name}, held out"}}
    return {"fit": set(subject.fit), "held_out": set(subject.held_out)}


def _titles(articles: dict[str, list[str]]) -> tuple[set[str], set[str]]:
    """All titles whose text may be fitted on, and those whose text may be reported on."""
    topics = [_of(name) for name in (*ENCYCLOPAEDIC, *MANUALS)]
    fit, held_out = (set().union(*(topic[side] for topic in topics)) for side in ("fit", "held_out"))
    free = sorted(set(articles) - fit - held_out)
    return fit | set(free[::2]), held_out | set(free[1::2])


def _some(pieces: list[str], shuffle) -> list[str]:
    pieces = list(pieces)
    shuffle(pieces)
    return pieces[:PIECES_OF_AN_ARTICLE]


def _articles(folder: Path, name: str) -> dict[str, list[str]]:
    """The pieces of every article; a manual is two articles, every third of its pages being held out."""
    found = {title: pieces for title, text in _enwiki(folder) if (pieces := _pieces(_plain(text).split("\n")))}
    if name in SECOND_ENCYCLOPAEDIC:
        pieces = [piece for title in SECOND_ENCYCLOPAEDIC[name].titles for piece in found[title]]
        for side, mine in (("fit", (0, 1, 2)), ("held out", (3,))):
            found[f"{name}, {side}"] = [piece for i, piece in enumerate(pieces) if i // BLOCK % 4 in mine]
    for name, manual in (MANUALS | {n: m for n, m in _LATE_MANUALS.items() if n == name}).items():
        pages = sorted((folder / manual.folder).glob("*.html"))
        seen: set[str] = set()  # manuals say things twice
        for side, chosen in (
            ("fit", [p for i, p in enumerate(pages) if i % 3]),
            ("held out", pages[::3]),
        ):
            pieces = [piece for page in chosen for piece in _pieces(_paragraphs(page)) if piece not in seen]
            seen.update(pieces)
            found[f"{name}, {side}"] = list(dict.fromkeys(pieces))
    return found


def _pieces(paragraphs: list[str]) -> list[str]:
    """Paragraphs that are long enough, cut at the ends of sentences where they are too long."""
    low, high = PIECE
    found = []
    for paragraph in paragraphs:
        piece = ""
        for sentence in re.split(r"(?<=[a-z)\"][.?!]) (?=[A-Z\"])", paragraph):
            if piece and len(piece) + len(sentence) >= high:
                found.append(piece)
                piece = ""
            piece = f"{piece} {sentence}".strip()
        found.append(piece)
    return [piece for piece in found if low <= len(piece) <= 2 * high]


def _paragraphs(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"<p\b[^>]*>(.*?)</p>", text, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", "", p)).split()) for p in found]


def _enwiki(folder: Path) -> Iterator[tuple[str, str]]:
    """Titles and wikitext."""
    if not (folder / ENWIKI).is_file():
        raise SystemExit(f"{folder} has no {ENWIKI}; see the top of paragraphs.py.")
    with bz2.open(folder / ENWIKI, "rt", encoding="utf-8") as file:
        dump = file.read()
    for page in re.findall(r"<page>.*?</page>", dump, re.DOTALL):
        title, text = re.search(r"<title>(.*?)</title>", page), re.search(r"<text[^>]*>(.*?)</text>", page, re.DOTALL)
        if title and text and not text[1].startswith("#REDIRECT") and "disambiguation" not in title[1]:
            yield html.unescape(title[1]), html.unescape(text[1])


def _plain(wikitext: str) -> str:
    """The running text of wikitext, without templates, tables, notes, links and lists."""
    text = re.sub(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<(math|gallery)\b.*?</\1>", "", wikitext, flags=re.DOTALL)
    text = html.unescape(text).replace("\xa0", " ")
    for opened, closed in ((r"\{\{", r"\}\}"), (r"\{\|", r"\|\}")):
        for _ in range(8):  # nested, the innermost first
            text = re.sub(rf"{opened}(?:(?!{opened}|{closed}).)*{closed}", "", text, flags=re.DOTALL)
    for _ in range(3):
        text = re.sub(r"\[\[(?:File|Image):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", "", text)
        text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"'{2,}|<[^>]+>|\(\s*[;,]?\s*\)", "", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line and line[0] not in "*#=|!:;{}")
