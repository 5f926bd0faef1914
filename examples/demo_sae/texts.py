"""The texts on which the demo's SAE is trained and measured: eleven sources with clear licenses.

Two of the sources are data sets in a folder of yours (`SAE_UNLEARN_DATA`):

    mmlu/test/<subject>_test.csv    columns question, choice0 ... choice3, answer
    wikitext2/valid.txt             WikiText-2's validation split, tokenised

The others lie in Debian packages, unpacked under a folder of yours (or installed: then that folder is `/`):

    apt-get download wordnet-base dict-gcide anarchism r-cran-janeaustenr bible-kjv bible-kjv-text debian-handbook \\
        gnucash-docs python3.11-doc wesnoth-1.16-{did,httt,nr,sof,trow,utbs}
    for package in *.deb; do dpkg -x $package FOLDER; done

`train_texts` and `held_out_texts` never share a document: the last 15 % of WikiText, the last 40 % of each MMLU
subject's questions, all of three MMLU subjects, and the last 6 % of every other source are held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .readers import (
    anarchism,
    austen,
    bible,
    debian_handbook,
    gcide,
    gnucash,
    mmlu,
    mmlu_unseen_subjects,
    python_docs,
    wesnoth,
    wikitext,
    wordnet,
)


@dataclass(frozen=True)
class Source:
    """One source of text.

    Args:
        name: Short, used as the domain's name in tables.
        origin: Package and version, or data set.
        license: Of the text.
        tokens: At most this many are trained on.
        held_out: Share of the documents, from the end, that is held out.
        documents: Reads the source, given the folders of the data sets and of the unpacked packages.
    """

    name: str
    origin: str
    license: str
    tokens: int
    held_out: float
    documents: Callable[[Path, Path], list[str]]

    def split(self, data: Path, packages: Path) -> tuple[list[str], list[str]]:
        """The documents to train on, and those held out."""
        documents = self.documents(data, packages)
        if not documents:
            raise ValueError(f"source {self.name!r} ({self.origin}) has no text under {data} or {packages}")
        cut = round(len(documents) * (1 - self.held_out))
        return documents[:cut], documents[cut:]


SOURCES = (
    Source("wikitext", "WikiText-2, validation split", "CC BY-SA 3.0", 230_000, 0.15, wikitext),
    Source("mmlu", "MMLU, test split, 13 subjects", "MIT", 160_000, 0.4, mmlu),
    Source("wordnet", "wordnet-base 1:3.0-37", "WordNet 3.0 license", 220_000, 0.06, wordnet),
    Source("gcide", "dict-gcide 0.48.5+nmu2", "GPL-2+", 80_000, 0.06, gcide),
    Source("anarchism", "anarchism 15.3-3", "GPL-2", 140_000, 0.06, anarchism),
    Source("austen", "r-cran-janeaustenr 1.0.0-1", "public domain (package MIT)", 120_000, 0.06, austen),
    Source("wesnoth", "wesnoth-1.16-{did,httt,nr,sof,trow,utbs} 1:1.16.9-1", "GPL-2+", 80_000, 0.06, wesnoth),
    Source("bible", "bible-kjv-text 4.38", "public domain", 60_000, 0.06, bible),
    Source("debian-handbook", "debian-handbook 11.20220922", "GPL-2+ or CC BY-SA 3.0", 50_000, 0.06, debian_handbook),
    Source("gnucash", "gnucash-docs 4.13-1", "GFDL-1.1+ without invariant sections", 40_000, 0.06, gnucash),
    Source("python-docs", "python3.11-doc 3.11.2-6+deb12u9", "PSF license", 30_000, 0.06, python_docs),
)


def train_texts(data: Path, packages: Path) -> dict[str, list[str]]:
    """The documents to train on, by source, in an order drawn once and for all."""
    texts = {}
    for source in SOURCES:
        documents, _ = source.split(data, packages)
        random.Random(0).shuffle(documents)
        texts[source.name] = documents
    return texts


def held_out_texts(data: Path, packages: Path) -> dict[str, list[str]]:
    """The held-out documents by domain: every source's, and MMLU subjects on which nothing is trained."""
    texts = {source.name: source.split(data, packages)[1] for source in SOURCES}
    texts["mmlu-unseen-subjects"] = mmlu_unseen_subjects(data)
    return texts
