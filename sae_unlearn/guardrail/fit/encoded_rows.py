"""Tokens of all rows of a corpus as the gate reads them: active features, or the residual stream."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sae_unlearn.backbone.distributed import gathered
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures
from sae_unlearn.guardrail.fit.direction_score import ResidualTokens
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus, GateTokens
from sae_unlearn.sae import SparseAutoencoder


_ELEMENTS = 2**24  # activations in memory at a time


class CollectedRows(ABC):
    """Content tokens of the rows of a corpus, with their norms and, if asked for, the ends of paragraphs."""

    def __init__(self, **parts: Tensor) -> None:
        none = torch.zeros(0, dtype=torch.long)
        parts = {"index": none, "lengths": none, "norms": none.float(), "ends": none.bool(), **parts}
        self._parts = {name: [part] for name, part in parts.items()}

    @torch.no_grad()
    def add(self, batch: ResidualBatch, content: Tensor, ends: Tensor | None = None) -> None:
        """Add the rows of a batch, with the tokens at which `content [batch, seq]` is True.

        `ends [batch, seq]` is True at the boundaries, which separate paragraphs. Pass it for all batches or for none.
        """
        tokens = batch.residual[content]
        self._add("index", torch.tensor(batch.index, dtype=torch.long))
        self._add("lengths", content.sum(dim=1).cpu())
        self._add("norms", tokens.float().norm(dim=-1).cpu())
        if ends is not None:
            self._add("ends", last_content(content, ends).cpu())
        self._add_tokens(tokens)

    @abstractmethod
    def _add_tokens(self, tokens: Tensor) -> None:
        """Add what the gate reads of `tokens [n, d_in]`."""

    @abstractmethod
    def _tokens(self, found: Mapping[str, Tensor], usual: Tensor) -> GateTokens:
        """Return what was added, with `usual [tokens]` False at outlying tokens."""

    def state(self) -> dict[str, Tensor]:
        """Return all that was added."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the rows of `state`."""
        self._parts = {name: [values] for name, values in state.items()}

    def corpus(self, documents: Sequence[int], largest_norm: float | None) -> EncodedCorpus:
        """Return the rows of all processes, in the order of the corpus.

        Args:
            documents (Sequence[int]): Number of the document of each row.
            largest_norm (float or None): Norm above which the gate reads nothing of a token; None to read all.
        """
        states = gathered(self.state())
        found = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        limit = torch.inf if largest_norm is None else largest_norm
        order = found["index"].argsort()
        tokens = self._tokens(found, found["norms"] <= limit).rows(order)
        ends = None
        if len(found["ends"]):
            by_row = found["ends"].split(found["lengths"].tolist())
            ends = [by_row[i] for i in order.tolist()]
        return EncodedCorpus(tokens, torch.tensor(documents, dtype=torch.long)[found["index"][order]], ends)

    def _add(self, name: str, values: Tensor) -> None:
        self._parts[name].append(values)


class EncodedRows(CollectedRows):
    """Active features at each content token, `4 L0 + 8` bytes a token, without activation values.

    With ends of paragraphs, one byte more.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        none = torch.zeros(0, dtype=torch.long)
        super().__init__(counts=none, features=none.int())
        self._sae = sae

    def _add_tokens(self, tokens: Tensor) -> None:
        for some in tokens.split(max(1, _ELEMENTS // self._sae.d_sae)):
            active = self._sae.encode(some.to(self._sae.device)) > 0
            self._add("counts", active.sum(dim=1).cpu())
            self._add("features", active.nonzero()[:, 1].int().cpu())

    def _tokens(self, found: Mapping[str, Tensor], usual: Tensor) -> ActiveFeatures:
        features = found["features"][usual.repeat_interleave(found["counts"])]
        counts = (found["counts"] * usual).cumsum(0)
        return ActiveFeatures(found["lengths"], torch.cat([counts.new_zeros(1), counts]), features)


class ResidualRows(CollectedRows):
    """The residual stream at each content token, `4 d_in` bytes a token."""

    def __init__(self, d_in: int) -> None:
        super().__init__(residual=torch.zeros(0, d_in))

    def _add_tokens(self, tokens: Tensor) -> None:
        self._add("residual", tokens.float().cpu())

    def _tokens(self, found: Mapping[str, Tensor], usual: Tensor) -> ResidualTokens:
        return ResidualTokens(found["lengths"], found["residual"], usual)


def last_content(content: Tensor, ends: Tensor) -> Tensor:
    """Return `[content tokens]` bool: True at the last content token up to each boundary, and of each row.

    `content` and `ends` are `[batch, seq]` bool. A boundary may be content itself or not.
    """
    earlier = ends.cumsum(dim=1) - ends.long()  # boundaries before each token
    found = []
    for kept, counts in zip(content, earlier, strict=True):
        own = counts[kept]
        found.append(torch.cat([own.diff() > 0, own.new_ones(min(len(own), 1), dtype=torch.bool)]))
    return torch.cat(found)
