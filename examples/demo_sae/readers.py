"""Readers of the sources of `texts`: each returns documents of plain text, given two folders."""

from __future__ import annotations

import csv
import gzip
import html
import random
import re
import struct
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path


MMLU_HELD_OUT_SUBJECTS = ("astronomy", "nutrition", "world_religions")
"""Subjects of which no question is trained on: forget topics that are new to the SAE."""

BLOCK_CHARACTERS = 2000
"""About how long the pieces are into which long documents are cut, at the ends of paragraphs."""


def blocks(paragraphs: Iterator[str] | list[str], separator: str = "\n\n") -> list[str]:
    """Join paragraphs, in their order, into documents of about `BLOCK_CHARACTERS`."""
    documents, current, length = [], [], 0
    for paragraph in paragraphs:
        current.append(paragraph)
        length += len(paragraph)
        if length >= BLOCK_CHARACTERS:
            documents.append(separator.join(current))
            current, length = [], 0
    return documents + [separator.join(current)] * bool(current)


# --- data sets -------------------------------------------------------------------------------------------------


def wikitext(data: Path, packages: Path) -> list[str]:
    """WikiText-2's articles without its spaces around punctuation; its `<unk>` for rare words stays."""
    text = (data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    text = re.sub(r" @(.)@ ", r"\1", text)
    text = re.sub(r" ([.,;:!?)\]%]|'s|n't|'re|'ve|'ll|'d|'m)(?=[\s.,;:!?)\]'\"])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r"^ (= )+(.*?)( =)+ $", r"\2", text, flags=re.MULTILINE)
    return blocks(line.strip() for line in text.splitlines() if line.strip())


def mmlu_questions(data: Path, subject: str) -> list[str]:
    """A subject's questions with their answers; every third one with all four choices."""
    texts = []
    with (data / "mmlu" / "test" / f"{subject}_test.csv").open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            choices = [row[f"choice{i}"] for i in range(4)]
            answer = choices[int(row["answer"])]
            if number % 3 == 0:
                listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
                texts.append(f"{row['question']}\n{listed}\nAnswer: {answer}")
            else:
                texts.append(f"{row['question']}\n{answer}")
    return texts


def mmlu_subjects(data: Path) -> list[str]:
    """The subjects of which there are test questions."""
    return sorted(path.name.removesuffix("_test.csv") for path in (data / "mmlu" / "test").glob("*_test.csv"))


def mmlu(data: Path, packages: Path) -> list[str]:
    """Questions of all subjects but the held-out ones, so ordered that the last 40 % of each come last."""
    subjects = [subject for subject in mmlu_subjects(data) if subject not in MMLU_HELD_OUT_SUBJECTS]
    first, last = [], []
    for subject in subjects:
        questions = mmlu_questions(data, subject)
        cut = round(len(questions) * 0.6)
        first += questions[:cut]
        last += questions[cut:]
    return first + last


def mmlu_unseen_subjects(data: Path) -> list[str]:
    """The last 40 % of the questions of the subjects on which nothing is trained."""
    texts = []
    for subject in MMLU_HELD_OUT_SUBJECTS:
        questions = mmlu_questions(data, subject)
        texts += questions[round(len(questions) * 0.6) :]
    return texts


# --- dictionaries ----------------------------------------------------------------------------------------------


def wordnet(data: Path, packages: Path) -> list[str]:
    """WordNet's glosses and examples in paragraphs of eight neighbors, all 45 subjects in equal number."""
    by_subject: dict[str, list[str]] = defaultdict(list)
    for part in ("noun", "verb", "adj", "adv"):
        with (packages / f"usr/share/wordnet/data.{part}").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("  "):  # the license at the top
                    continue
                fields, gloss = line.split(" | ", 1)
                fields = fields.split()
                count = int(fields[3], 16)
                words = [word.split("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
                also = f" ({', '.join(words[1:])})" if len(words) > 1 else ""
                by_subject[fields[1]].append(f"{words[0]}{also}: {gloss.strip()}.")
    shuffled = random.Random(0)
    paragraphs = []
    for entries in by_subject.values():
        groups = [" ".join(entries[i : i + 8]) for i in range(0, len(entries), 8)]
        shuffled.shuffle(groups)
        paragraphs.append(groups)
    return [text for row in zip_longest(*paragraphs) for text in row if text is not None]


def gcide(data: Path, packages: Path) -> list[str]:
    """Entries of the Collaborative International Dictionary of English with their quotations, shuffled."""
    with gzip.open(packages / "usr/share/dictd/gcide.dict.dz", "rt", encoding="utf-8", errors="replace") as file:
        text = file.read()
    text = re.sub(r"\[(1913 Webster|Webster 1913 Suppl\.|PJC|WordNet 1\.5|[^]]*\+PJC)\]", "", text)
    entries = []
    for entry in re.split(r"\n\n(?=\S)", text):
        entry = re.sub(r"\\[^\\\n]*\\,?", ",", entry)  # the pronunciation
        entry = re.sub(r"\s+", " ", re.sub(r"\[[^]]*\]|[{}]", "", entry)).strip()
        if len(entry) > 200:
            entries.append(entry)
    random.Random(0).shuffle(entries)
    return entries[:6000]


# --- prose -----------------------------------------------------------------------------------------------------


class _Paragraphs(HTMLParser):
    """The text of a page's paragraphs, list items and headings."""

    TAGS = ("p", "li", "dd", "h1", "h2", "h3")

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.TAGS or ("class", "para") in attrs:
            self._open = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in (*self.TAGS, "div", "pre"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.paragraphs[-1] += data


def _html_paragraphs(folder: Path, pattern: str = "*.html") -> Iterator[str]:
    for page in sorted(folder.glob(pattern)):
        parser = _Paragraphs()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        for paragraph in parser.paragraphs:
            paragraph = re.sub(r"\s+", " ", paragraph).strip()
            if len(paragraph) > 60:
                yield paragraph


def anarchism(data: Path, packages: Path) -> list[str]:
    """An Anarchist FAQ: essays on history, economics and politics."""
    return blocks(_html_paragraphs(packages / "usr/share/doc/anarchism/html", "sec*.html"))


def debian_handbook(data: Path, packages: Path) -> list[str]:
    """The Debian Administrator's Handbook."""
    return blocks(_html_paragraphs(packages / "usr/share/doc/debian-handbook/html/en-US"))


def gnucash(data: Path, packages: Path) -> list[str]:
    """GnuCash's tutorial and concepts guide: accounting and personal finance."""
    return blocks(_html_paragraphs(packages / "usr/share/doc/gnucash-docs/gnucash-guide-en"))


def python_docs(data: Path, packages: Path) -> list[str]:
    """Python's tutorial, how-tos and questions and answers: the plain paragraphs of their sources."""
    sources = packages / "usr/share/doc/python3.11/html/_sources"
    paragraphs = []
    for path in sorted(p for part in ("tutorial", "howto", "faq") for p in (sources / part).glob("*.rst.txt")):
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            paragraph = re.sub(r":\w+(:\w+)?:`([^`]*)`", r"\2", paragraph).replace("``", "`")
            if len(paragraph) > 60 and not paragraph.startswith((" ", "..", "\n", ">>>")):
                paragraphs.append(re.sub(r"\s+", " ", paragraph).strip())
    return blocks(paragraphs)


def austen(data: Path, packages: Path) -> list[str]:
    """Jane Austen's six novels, out of an R package's data."""
    database = (packages / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    paragraphs, start = [], 0
    while start < len(database):  # each novel: its length, then a zlib stream
        stream = zlib.decompressobj()
        serialised = stream.decompress(database[start + 4 :])
        start = len(database) - len(stream.unused_data)
        lines = "\n".join(_r_strings(serialised))
        paragraphs += [" ".join(p.split()) for p in lines.split("\n\n") if len(p) > 60]
    return blocks(paragraphs)


def _r_strings(serialised: bytes) -> Iterator[str]:
    """The strings of one character vector in R's XDR serialisation (flags, length, bytes; type 9 is a string)."""
    position = serialised.index(b"\x00\x04\x00\x09")  # the first ASCII string's flags
    while position + 8 <= len(serialised):
        flags, length = struct.unpack_from(">ii", serialised, position)
        if flags & 0xFF != 9 or length < 0:
            return
        yield serialised[position + 8 : position + 8 + length].decode("utf-8", errors="replace")
        position += 8 + length


def bible(data: Path, packages: Path) -> list[str]:
    """The King James Bible, as the package's own program prints it; the last 6 % are epistles and Revelation."""
    program, text = packages / "usr/bin/bible", packages / "usr/lib/bible.data"
    printed = subprocess.run(
        [program, "-f", "-p", text.parent, "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    return blocks((line.split(" ", 1)[1] for line in printed.splitlines() if " " in line), separator=" ")


def wesnoth(data: Path, packages: Path) -> list[str]:
    """Stories and dialogues of six campaigns of Battle for Wesnoth."""
    campaigns = packages / "usr/share/games/wesnoth/1.16/data/campaigns"
    paragraphs = []
    for path in sorted(campaigns.glob("*/scenarios/**/*.cfg")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for passage in re.findall(r'(?:message|story) *= *_ *"([^"]{60,})"', text):
            paragraphs.append(re.sub(r"<[^>]*>", "", html.unescape(passage)).strip())
    return blocks(paragraphs)
