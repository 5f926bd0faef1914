"""Active features of all rows of a corpus, collected during a pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sae_unlearn.backbone.distributed import gathered
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.guardrail.fit.active_features import ActiveFeatures
from sae_unlearn.guardrail.fit.windowed_fit import EncodedCorpus
from sae_unlearn.sae import SparseAutoencoder


_ELEMENTS = 2**24  # activations in memory at a time


class EncodedRows:
    """Active features at each content token, `4 L0 + 8` bytes a token, without activation values.

    With ends of paragraphs, one byte more.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        none, parts = torch.zeros(0, dtype=torch.long), ("index", "lengths", "counts", "features", "norms")
        self._parts: dict[str, list[Tensor]] = {name: [none.int() if name == "features" else none] for name in parts}
        self._parts |= {"norms": [none.float()], "ends": [none.bool()]}

    @torch.no_grad()
    def add(self, batch: ResidualBatch, content: Tensor, ends: Tensor | None = None) -> None:
        """Add the rows of a batch, with the tokens at which `content [batch, seq]` is True.

        `ends [batch, seq]` is True at the boundaries, which separate paragraphs. Pass it for all batches or for none.
        """
        tokens = batch.residual[content]
        active = [self._sae.encode(some.to(self._sae.device)) > 0 for some in tokens.split(self._block)]
        self._add("index", torch.tensor(batch.index, dtype=torch.long))
        self._add("lengths", content.sum(dim=1).cpu())
        self._add("norms", tokens.float().norm(dim=-1).cpu())
        if ends is not None:
            self._add("ends", last_content(content, ends).cpu())
        for some in active:
            self._add("counts", some.sum(dim=1).cpu())
            self._add("features", some.nonzero()[:, 1].int().cpu())

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
            largest_norm (float or None): Norm above which a token has no active features; None to keep all.
        """
        states = gathered(self.state())
        found = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        counts, features = found["counts"], found["features"]
        if largest_norm is not None:
            usual = found["norms"] <= largest_norm
            features, counts = features[usual.repeat_interleave(counts)], counts * usual
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        order = found["index"].argsort()
        active = ActiveFeatures(found["lengths"], starts, features).rows(order)
        ends = None
        if len(found["ends"]):
            by_row = found["ends"].split(found["lengths"].tolist())
            ends = [by_row[i] for i in order.tolist()]
        return EncodedCorpus(active, torch.tensor(documents, dtype=torch.long)[found["index"][order]], ends)

    @property
    def _block(self) -> int:
        return max(1, _ELEMENTS // self._sae.d_sae)

    def _add(self, name: str, values: Tensor) -> None:
        self._parts[name].append(values)


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
