"""Forget and retain texts as a guardrail on a model reads them.

Each text is tokenized once, and run up to the guarded layer once.
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
from sae_unlearn.guardrail.gate.offline import documents_as_fitted, read_batch, unguarded_residuals


def the_guardrail(model: nn.Module, adapter_name: str | None = None) -> tuple[str, SAEGuardrailLayer]:
    """Return name and layer of the guardrail of that name, or of the only one.

    Raises:
        GuardrailError: If the model has no guardrail, none of that name, or several and no name was passed.
    """
    found = {name: layer for layer in guard_layers(model) for name in layer.guard_config}
    if not found:
        raise GuardrailError(f"model: expected a {type(model).__name__} with a guardrail. Attach one.")
    if adapter_name is None and len(found) > 1:
        raise GuardrailError(
            f"adapter_name=None: expected one of {sorted(found)}, since the model has several guardrails."
        )
    name = next(iter(found)) if adapter_name is None else adapter_name
    if name not in found:
        raise GuardrailError(f"adapter_name={name!r}: expected a guardrail on the model, one of {sorted(found)}.")
    layer = found[name]
    layer.check_ready(name)
    return name, layer


def clamp_of(layer: SAEGuardrailLayer, name: str) -> Tensor:
    """Return the tensor of the values to which a guardrail clamps its features, `[N]`."""
    return layer.guardrail(name).decoder.clamp


@contextmanager
def alone_and_clamping(model: nn.Module, name: str) -> Iterator[None]:
    """Enable only this guardrail, with the action "clamp", inside the `with` block.

    Raises:
        GuardrailError: If the model has no such guardrail, or its adapters are disabled.
    """
    _, layer = the_guardrail(model, name)
    if any(each.off for each in guard_layers(model)):
        raise GuardrailError(
            "model: expected enabled adapters, got disabled ones. Measure the guardrail outside of `disable_adapter()`."
        )
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
    """Texts for one guardrail of a model, shared by several measurements.

    Args:
        model (nn.Module): A model with the guardrail.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget, retain (iterable, *optional*): Texts of the topic and other texts, as for `fit_guardrail`. At least one
            of the two is needed.
        adapter_name (str, *optional*): Name of the guardrail. None takes the only one.
        text_column (str): Column or key of the text in datasets and mappings.
        batch_size (int): Rows per forward pass.
        progress (bool): Show progress bars.

    Attributes:
        name, layer, config: Of the guardrail.

    Raises:
        GuardrailError: If the model has no such guardrail, or no texts are given.
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
            raise GuardrailError("forget=None, retain=None: expected texts. Pass at least one of the two.")
        self._statistics: dict[str, Tensor] = {}

    @cached_property
    def documents(self) -> dict[str, list[Document]]:
        """Texts as the fit would have read them, by role.

        Raises:
            GuardrailError: If a corpus is empty.
        """
        return {
            role: documents_as_fitted(corpus, self.tokenizer, role, self.config, self._text_column)
            for role, corpus in self._corpora.items()
        }

    def rows(self, role: str) -> list[tuple[int, list[int]]]:
        """Return the rows of a role's documents: the document's number, from 0, and the token ids."""
        return [(number, row) for number, document in enumerate(self.documents[role]) for row in document.rows]

    def residuals(self, role: str) -> Iterator[ResidualBatch]:
        """Yield the residuals of a role's rows at the guarded layer with guardrails disabled, and keep their
        statistics."""
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
        """Return the gate's statistic of each row, `[n]`. Rows that were not run to their end are run."""
        if role not in self._statistics:
            for _ in self.residuals(role):
                pass
        return self._statistics[role]
