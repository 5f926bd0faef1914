"""The guarded features on given texts: strongest contexts, densities, and the gate's statistics.

One pass through the model, up to the guarded layer. Only the best contexts of each feature are kept, so memory does not
grow with the texts.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.checks import check_integer
from sae_unlearn.evaluation.explorer.texts import GuardedTexts
from sae_unlearn.guardrail.gate.offline import judged_tokens


_UNFINISHED = "\ufffd"  # a decoder's output for an incomplete character


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text of a row of token ids as one piece for each token. Together the pieces are the text.

    A character of several tokens belongs to the last of them, and the other pieces are empty. Blanks before words are
    kept, which decoding a single token may lose.
    """
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text if end == len(ids) else text.rstrip(_UNFINISHED)
        pieces.append(whole[len(done) :])
        done = whole if len(whole) > len(done) else done
    return pieces


@dataclass(frozen=True)
class Context:
    """Tokens around a place at which a feature is strongly active.

    Attributes:
        role (str): "forget" or "retain", the corpus of the text.
        document (int): 0-based number of the text in its corpus.
        tokens (tuple of str): The text, token by token.
        activations (tuple of float): Activation of the feature at each token, 0 if it is inactive or the token is not
            content.
        peak (int): Index of the largest activation.
        cut (tuple of bool): The row continues before these tokens, and after them.
    """

    role: str
    document: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    cut: tuple[bool, bool]


@dataclass(frozen=True)
class GuardedFeature:
    """A guarded feature on the texts.

    Attributes:
        feature (int or None): Its id in the SAE. None if the guardrail does not record it.
        contexts (tuple of Context): One context of each of the rows with the highest peaks, highest first.
        density (mapping): Share of content tokens at which it is active, by role.
        mean_squared (mapping): Mean of the squared activation over content tokens, by role.
    """

    feature: int
    contexts: tuple[Context, ...]
    density: dict[str, float]
    mean_squared: dict[str, float]

    @property
    def ratio(self) -> float | None:
        """Mean squared activation on forget over that on retain text, or None if it is undefined."""
        retain = self.mean_squared.get("retain")
        return self.mean_squared["forget"] / retain if retain and "forget" in self.mean_squared else None


@dataclass(frozen=True)
class FeatureContexts:
    """Result of `feature_contexts`.

    Attributes:
        features (tuple of GuardedFeature): In the order of the guardrail.
        statistics (mapping): The gate's statistic of each row, by role.
        documents, tokens (mapping): Numbers of texts and content tokens, by role.
    """

    features: tuple[GuardedFeature, ...]
    statistics: dict[str, list[float]]
    documents: dict[str, int]
    tokens: dict[str, int]


def feature_contexts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Iterable[Any] | None = None,
    retain: Iterable[Any] | None = None,
    *,
    adapter_name: str | None = None,
    contexts: int = 5,
    around: int = 16,
    text_column: str = "text",
    batch_size: int = 8,
    progress: bool = True,
) -> FeatureContexts:
    """Run texts through the model up to the guarded layer and measure the guarded features there.

    The features are those of the guardrail: for a TopK SAE, its approximation by thresholds. Texts are read as in the
    fit: cut at its length, in its chat template.

    Args:
        model (nn.Module): A model with the guardrail. Its guardrails are disabled during the pass.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget, retain (iterable, *optional*): Texts of the topic and other texts, as for `fit_guardrail`. At least one
            of the two is needed.
        adapter_name (str, *optional*): Name of the guardrail. None takes the only one.
        contexts (int, *optional*, defaults to 5): Contexts of each feature.
        around (int, *optional*, defaults to 16): Tokens shown before a peak, and after it.
        text_column (str, *optional*, defaults to "text"): Column or key of the text in datasets and mappings.
        batch_size (int, *optional*, defaults to 8): Rows per forward pass. It changes only rounding.
        progress (bool, *optional*, defaults to True): Show progress bars.

    Returns:
        FeatureContexts: The contexts of each feature.

    Raises:
        GuardrailError: If the model has no such guardrail, no texts are given, or a corpus is empty.
        UnlearnError: If `contexts` or `around` is out of range.
    """
    texts = GuardedTexts(model, tokenizer, forget, retain, adapter_name, text_column, batch_size, progress)
    return contexts_in(texts, contexts, around)


@torch.no_grad()
def contexts_in(texts: GuardedTexts, contexts: int, around: int) -> FeatureContexts:
    """Return the contexts of texts that can also be used for other measurements."""
    check_integer("contexts", contexts, 1)
    check_integer("around", around, 0)
    config, encoder = texts.config, texts.encoder
    best = _Best(config.num_features, contexts, around)
    sums = {role: _Sums(config.num_features) for role in texts.documents}
    for role, seen in sums.items():
        of_row = [number for number, _ in texts.rows(role)]
        for batch in texts.residuals(role):
            _, eligible = judged_tokens(batch, config)
            activations = encoder(batch.residual)[..., : config.num_features]
            activations = activations.where(eligible[..., None] & (activations > 0), 0)
            seen.add(activations, eligible)
            best.add(batch, activations, role, of_row)
    density = {role: (seen.active / max(seen.tokens, 1)).tolist() for role, seen in sums.items()}
    squares = {role: (seen.squares / max(seen.tokens, 1)).tolist() for role, seen in sums.items()}
    features = tuple(
        GuardedFeature(
            feature=feature,
            contexts=best.contexts(place, texts.tokenizer),
            density={role: values[place] for role, values in density.items()},
            mean_squared={role: values[place] for role, values in squares.items()},
        )
        for place, feature in enumerate(config.feature_ids or ())
    )
    return FeatureContexts(
        features,
        statistics={role: texts.statistics(role).tolist() for role in sums},
        documents={role: len(found) for role, found in texts.documents.items()},
        tokens={role: seen.tokens for role, seen in sums.items()},
    )


class _Sums:
    """Running sums over content tokens, `[N]`: active tokens, and squared activations."""

    def __init__(self, n: int) -> None:
        self.tokens = 0
        self.active, self.squares = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)

    def add(self, activations: Tensor, content: Tensor) -> None:
        self.tokens += int(content.sum())
        self.active += (activations > 0).sum(dim=(0, 1)).double().cpu()
        self.squares += activations.double().square().sum(dim=(0, 1)).cpu()


class _Best:
    """The rows with the highest peaks of each feature. Of equal peaks the earlier row is kept."""

    def __init__(self, n: int, number: int, around: int) -> None:
        self._number, self._around = number, around
        self._heaps: list[list[tuple[float, int, int, tuple[Any, ...]]]] = [[] for _ in range(n)]

    def add(self, batch: ResidualBatch, activations: Tensor, role: str, documents: list[int]) -> None:
        """Offer the rows of a batch, with their activations `[batch, seq, N]`, 0 at tokens that do not count."""
        peaks, places = activations.max(dim=1)
        peaks, places = peaks.float().cpu(), places.cpu()
        lowest = torch.tensor([heap[0][0] if len(heap) == self._number else 0.0 for heap in self._heaps])
        for i, feature in ((peaks >= lowest) & (peaks > 0)).nonzero().tolist():
            place, row = int(places[i, feature]), batch.index[i]
            length = int(batch.kept[i].sum())
            window = slice(max(0, place - self._around), min(place + self._around + 1, length))
            cut = (window.start > 0, window.stop < length)
            ids, values = batch.input_ids[i, window].tolist(), activations[i, window, feature].float().tolist()
            # forget rows come first: of equal peaks, theirs is kept
            key = (float(peaks[i, feature]), 0 if role == "forget" else -1, -row)
            entry = (*key, (role, documents[row], ids, values, place - window.start, cut))
            if len(self._heaps[feature]) < self._number:
                heapq.heappush(self._heaps[feature], entry)
            else:
                heapq.heappushpop(self._heaps[feature], entry)

    def contexts(self, feature: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Context, ...]:
        """The contexts of a feature, highest peak first."""
        kept = [entry[-1] for entry in sorted(self._heaps[feature], reverse=True)]
        return tuple(
            Context(role, document, tuple(token_pieces(tokenizer, ids)), tuple(values), *places)
            for role, document, ids, values, *places in kept
        )
