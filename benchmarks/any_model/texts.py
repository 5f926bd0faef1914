"""Texts of Debian packages: a topic (food and drink), other text, and a mix to train an SAE on.

The packages are those of `examples/demo_sae/texts.py` without its two data sets, unpacked under one folder:

    apt-get download wordnet-base dict-gcide anarchism r-cran-janeaustenr debian-handbook gnucash-docs \\
        python3.11-doc wesnoth-1.16-{did,httt,nr,sof,trow,utbs}
    for package in *.deb; do dpkg -x $package FOLDER; done

The topic is WordNet's own subject "noun.food", other text is WordNet's other subjects and prose. A text is of one use
only: training the SAE, fitting, or judging.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from examples.demo_sae.texts import SOURCES


TOPIC = "13"  # number of the lexicographer file noun.food
GLOSSES = 4  # of a text
PROSE = ("gcide", "anarchism", "austen", "wesnoth", "debian-handbook", "gnucash", "python-docs")
PARTS = {
    "sae": {"topic": 100, "wordnet": 300, "prose": 8},
    "fit": {"topic": 200, "wordnet": 150, "prose": 14},
    "judge": {"topic": 60, "wordnet": 60, "prose": 6},
}
"""Texts of each use: of the topic, of WordNet's other subjects, and of each prose source."""
PROSE_CHARACTERS = 600
"""Longest text of prose that is fitted or judged; the SAE reads whole documents."""


def wordnet_texts(packages: Path) -> tuple[list[str], list[str]]:
    """Return texts of a few glosses each: those of the topic, and those of all other subjects in equal number."""
    by_subject: dict[str, list[str]] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (packages / f"usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the license at the top
                continue
            fields, gloss = line.split(" | ", 1)
            _, subject, _, _, word, *_ = fields.split()
            by_subject.setdefault(subject, []).append(f"{word.replace('_', ' ').split('(')[0]}: {gloss.strip()}.")
    draw = random.Random(0)
    texts = {}
    for subject, entries in by_subject.items():
        texts[subject] = ["\n".join(entries[i : i + GLOSSES]) for i in range(0, len(entries), GLOSSES)]
        draw.shuffle(texts[subject])
    topic = texts.pop(TOPIC)
    others = [text for subject in texts.values() for text in subject[:20]]
    draw.shuffle(others)
    return topic, others


def write_texts(packages: Path, folder: Path) -> dict[str, int]:
    """Write `sae.json`, and `topic.json` and `other.json` for fitting and (`judge_...`) for judging.

    Returns:
        `dict[str, int]`: Number of texts in each file.
    """
    topic, others = wordnet_texts(packages)
    prose = {source.name: source.documents(packages, packages) for source in SOURCES if source.name in PROSE}
    for documents in prose.values():
        random.Random(0).shuffle(documents)
    written: dict[str, list[str]] = {}
    used = {"topic": 0, "wordnet": 0, "prose": 0}
    for use, parts in PARTS.items():
        start, used = used, {kind: used[kind] + count for kind, count in parts.items()}
        mine = topic[start["topic"] : used["topic"]]
        rest = others[start["wordnet"] : used["wordnet"]]
        documents = [text for source in prose.values() for text in source[start["prose"] : used["prose"]]]
        if use == "sae":
            written["sae"] = mine + rest + documents
        else:
            prefix = "" if use == "fit" else "judge_"
            written[f"{prefix}topic"] = mine
            written[f"{prefix}other"] = rest + [text[:PROSE_CHARACTERS] for text in documents]
    for name, texts in written.items():
        (folder / f"{name}.json").write_text(json.dumps(texts, indent=0, ensure_ascii=False), encoding="utf-8")
    return {name: len(texts) for name, texts in written.items()}
