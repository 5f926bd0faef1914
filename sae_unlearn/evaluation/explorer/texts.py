"""Forget and retain texts as a guardrail on a model reads them: each tokenised once, and run up to its layer once.

The one guardrail of a model that is looked at.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import bare_model
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.backbone.tokens import Document
from sae_unlearn.guardrail import (
    GuardrailError,
    SAEGuardrailLayer,
    enable_guardrails,
    guard_layers,
    list_guardrails,
)
from sae_unlearn.guardrail.offline import documents_as_fitted, read_batch, unguarded_residuals


def the_guardrail(model: nn.Module, adapter_name: str | None = None) -> tuple[str, SAEGuardrailLayer]:
    """The guardrail of that name, or the only one, as its name and its layer.

    Raises:
        GuardrailError: there is none, there is none of that name, or no name was given and there are several.
    """
    found = {name: layer for layer in guard_layers(model) for name in layer.guard_config}
    if not found:
        raise GuardrailError(f"There is no guardrail on this {type(model).__name__}; attach one first.")
    if adapter_name is None and len(found) > 1:
        raise GuardrailError(f"The model has several guardrails, {sorted(found)}; name one by adapter_name.")
    name = next(iter(found)) if adapter_name is None else adapter_name
    if name not in found:
        raise GuardrailError(f"There is no guardrail {name!r} on the model; there are {sorted(found)}.")
    layer = found[name]
    layer.check_ready(name)
    return name, layer


def clamp_of(layer: SAEGuardrailLayer, name: str) -> Tensor:
    """The values that a guardrail clamps its features to, `[N]`; the tensor itself."""
    return layer.guardrail(name).decoder.clamp


@contextmanager
def alone_and_clamping(model: nn.Module, name: str) -> Iterator[None]:
    """Of the guardrails only this one is in force, and it clamps, whatever its action; afterwards all is as before."""
    _, layer = the_guardrail(model, name)
    if any(each.off for each in guard_layers(model)):
        raise GuardrailError("The model's adapters are disabled; look at the guardrail outside of `disable_adapter()`.")
    config = layer.guardrail(name).config
    active = [one.name for one in list_guardrails(model) if one.active]
    action = config.action
    try:
        enable_guardrails(model, name)
        config.action = "clamp"
        yield
    finally:
        config.action = action
        enable_guardrails(model, active)


class GuardedTexts:
    """Texts for one guardrail of a model, to be looked at from more than one side.

    Args:
        model: a model with the guardrail.
        forget, retain: texts of the topic, and others. One of the two may be left out.
        adapter_name: which guardrail; None takes the only one.
        text_column: column of datasets and mappings that holds the text.
        batch_size: rows per forward pass.
        progress: show progress bars.

    Attributes:
        name, layer, config, encoder: of the guardrail.

    Raises:
        GuardrailError: there is no such guardrail, or no text.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        forget: Iterable[Any] | None,
        retain: Iterable[Any] | None,
        adapter_name: str | None,
        text_column: str,
        batch_size: int,
        progress: bool,
    ) -> None:
        self.name, self.layer = the_guardrail(model, adapter_name)
        self.config, self.encoder, _ = self.layer.guardrail(self.name)
        self.model, self.tokenizer, self.batch_size, self.progress = model, tokenizer, batch_size, progress
        self._text_column = text_column
        corpora = {"forget": forget, "retain": retain}
        self._corpora = {role: corpus for role, corpus in corpora.items() if corpus is not None}
        if not self._corpora:
            raise GuardrailError("There is no text to look at; give `forget`, `retain`, or both.")
        self._statistics: dict[str, Tensor] = {}

    @cached_property
    def documents(self) -> dict[str, list[Document]]:
        """By role, the texts as the fit would have read them.

        Raises:
            GuardrailError: a corpus is empty.
        """
        return {
            role: documents_as_fitted(corpus, self.tokenizer, role, self.config, self._text_column)
            for role, corpus in self._corpora.items()
        }

    def rows(self, role: str) -> list[tuple[int, list[int]]]:
        """The rows of a role's documents: the document's number, from 0, and the token ids."""
        return [(number, row) for number, document in enumerate(self.documents[role]) for row in document.rows]

    def residuals(self, role: str) -> Iterator[ResidualBatch]:
        """Run a role's rows up to the guarded layer, guardrails out of force; their statistics are noted."""
        rows = [row for _, row in self.rows(role)]
        statistics = torch.zeros(len(rows))
        title = f"{role}: up to layer {self.config.layer}"
        with tqdm(total=len(rows), desc=title, unit="row", disable=not self.progress) as bar:
            for batch in unguarded_residuals(bare_model(self.model), rows, self.config.layer, self.batch_size):
                statistics[batch.index] = read_batch(batch, self.encoder, self.config).statistics
                yield batch
                bar.update(len(batch.index))
        self._statistics[role] = statistics

    def statistics(self, role: str) -> Tensor:
        """`[n]`, the gate's statistic of each row; the rows are run if they have not been run to their end."""
        if role not in self._statistics:
            for _ in self.residuals(role):
                pass
        return self._statistics[role]
