"""What a model can read at all: ids of its vocabulary, and as many tokens as it has learned positions."""

from typing import Any, NamedTuple

from torch import nn

from sae_unlearn.backbone.layers import input_embeddings, max_positions
from sae_unlearn.errors import UnlearnError


class Limits(NamedTuple):
    """The limits of a model.

    Attributes:
        vocabulary: number of token ids; None if it cannot be told.
        positions: number of tokens of a row; None where positions are computed, and not looked up in a table.
    """

    vocabulary: int | None
    positions: int | None

    @classmethod
    def of(cls, model: nn.Module, backbone: nn.Module) -> "Limits":
        """Of a bare transformers model and its text decoder, which is without what a multimodal model reads pictures
        with. A table of positions is an embedding there with as many rows as the config names positions, or two more,
        as in OPT."""
        tokens: Any = input_embeddings(model)
        named = max_positions(model)
        tables = [m for m in backbone.modules() if isinstance(m, nn.Embedding) and m is not tokens]
        learned = named is not None and any(m.num_embeddings in (named, named + 2) for m in tables)
        return cls(getattr(tokens, "num_embeddings", None), named if learned else None)

    def check(self, index: list[int], rows: list[list[int]]) -> None:
        """Raise unless the model can read the rows, which the corpus holds at places `index`. On a GPU it would fail
        without a word of why, and take the process with it.

        Raises:
            UnlearnError: naming the row and what is too large.
        """
        for i, row in zip(index, rows, strict=True):
            if self.positions is not None and len(row) > self.positions:
                raise UnlearnError(
                    f"Row {i} has {len(row)} tokens, and the model has learned {self.positions} positions; give "
                    f"shorter rows, or max_length={self.positions}."
                )
            if self.vocabulary is not None and row and not 0 <= min(row) <= max(row) < self.vocabulary:
                wrong = max(row) if max(row) >= self.vocabulary else min(row)
                raise UnlearnError(
                    f"Row {i} holds token id {wrong}, and the model has the ids 0 to {self.vocabulary - 1}; is the "
                    "tokenizer that of the model?"
                )
