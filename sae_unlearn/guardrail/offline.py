"""What a guardrail makes of rows outside of a model's call, for fitting and checking: the gate's own functions, on the
residual streams of `residual_batches`.

The residual stream as it is without guardrails.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.adapters_off import guards_off
from sae_unlearn.backbone.residual_stream import ResidualBatch, residual_batches
from sae_unlearn.backbone.tokens import Document, read_corpus
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate import heard, hits_of, hot_tokens, row_statistic, usual_norm


ROW_LIMIT = 8192  # tokens of a row, whatever the config says


class Reading(NamedTuple):
    """What the gate reads in a batch.

    Attributes:
        statistics: `[batch]`, the value that is compared with the threshold.
        hot_activations: `[hot tokens, N]`, activations of the guarded features where the token is hot.
        hot_norms: `[hot tokens]`, norms of the residual stream there.
    """

    statistics: Tensor
    hot_activations: Tensor
    hot_norms: Tensor


def documents_as_fitted(
    corpus: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    role: str,
    config: SAEGuardrailConfig,
    text_column: str = "text",
) -> list[Document]:
    """A corpus as the fit would have read it: same length, same template; see `read_corpus`.

    Raises:
        GuardrailError: it is empty.
    """
    calibration = config.calibration or {}
    length = calibration.get("max_length")
    length = length if isinstance(length, int) and 1 < length <= ROW_LIMIT else 512
    template = calibration.get("chat_template") is True
    documents = list(read_corpus(corpus, tokenizer, role, length, template, text_column))
    if not documents:
        raise GuardrailError(f"The {role} corpus is empty; give at least one text.")
    return documents


def rows_as_fitted(
    corpus: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    role: str,
    config: SAEGuardrailConfig,
    text_column: str = "text",
) -> list[list[int]]:
    """The rows of `documents_as_fitted`."""
    documents = documents_as_fitted(corpus, tokenizer, role, config, text_column)
    return [row for document in documents for row in document.rows]


def content_tokens(batch: ResidualBatch, config: SAEGuardrailConfig) -> Tensor:
    """`[batch, seq]` bool: neither padding nor special."""
    return batch.kept & ~_is_one_of(batch, config.tokens.special_ids or ())


def message_ends(batch: ResidualBatch, config: SAEGuardrailConfig) -> Tensor | None:
    """`[batch, seq]` bool: the tokens that end a message; None if the config names none."""
    if not config.tokens.boundary_ids:
        return None
    return batch.kept & _is_one_of(batch, config.tokens.boundary_ids)


def _is_one_of(batch: ResidualBatch, ids: Sequence[int]) -> Tensor:
    return torch.isin(batch.input_ids, torch.tensor(ids, dtype=torch.long, device=batch.input_ids.device))


def judged_tokens(batch: ResidualBatch, config: SAEGuardrailConfig) -> tuple[Tensor, Tensor]:
    """`[batch, seq]` bool twice: the tokens that are counted, and those that can be hot."""
    if config.tokens.counting == "columns":  # a row's own columns: no batch here, so no padding
        return batch.kept, batch.kept & (torch.arange(batch.kept.shape[1], device=batch.kept.device) > 0)
    content = content_tokens(batch, config)
    return content, content


def read_batch(batch: ResidualBatch, encoder: nn.Module, config: SAEGuardrailConfig) -> Reading:
    """The gate's statistic for each row, each judged as if it were alone.

    Args:
        encoder: gives the guarded features' activations `[..., N]`, 0 where they are not active.
    """
    activations = encoder.to(batch.residual.device)(batch.residual)
    counted, eligible = judged_tokens(batch, config)
    activations = heard(activations, eligible, usual_norm(batch.residual, config))
    active = activations != 0
    hits = hits_of(activations, active, ConfigTables().evidence(config, activations.device), counted, config)
    hot = hot_tokens(active, hits, config)
    return Reading(
        row_statistic(hits, counted, config, message_ends(batch, config)).cpu(),
        activations[hot][:, : config.num_features],
        batch.residual[hot].float().norm(dim=-1),
    )


def unguarded_residuals(
    model: nn.Module,
    rows: Iterable[list[int]],
    layer: int,
    batch_size: int,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[ResidualBatch]:
    """`residual_batches` with the model's guardrails out of force. Arguments and errors are the same."""
    with guards_off(model):
        yield from residual_batches(model, rows, layer, batch_size, wanted=wanted)
