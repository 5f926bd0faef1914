"""The gate's functions on rows outside of a model's call, for fitting and checking.

They read the residual stream without guardrails, from `residual_batches`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.adapters_off import guards_off
from sae_unlearn.backbone.residual_stream import ResidualBatch, residual_batches
from sae_unlearn.backbone.tokens import Document, read_corpus
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate import counted as which
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import heard, hits_of, hot_tokens, row_statistic, usual_norm


ROW_LIMIT = 8192  # largest number of tokens of a row, also if the config has more


class Reading(NamedTuple):
    """Values of the gate on a batch.

    Attributes:
        statistics (Tensor): Statistic of each row `[batch]`.
        hot_activations (Tensor): Activations of the guarded features at hot tokens `[hot tokens, N]`.
        hot_norms (Tensor): Norms of the residual stream at hot tokens `[hot tokens]`.
        hits (Tensor): How hot each token is, `[batch, seq]`; see `gate.decision.hits_of`.
        counted (Tensor): The counted tokens, `[batch, seq]` bool.
        ends (Tensor or None): The tokens that end a message, `[batch, seq]` bool.
    """

    statistics: Tensor
    hot_activations: Tensor
    hot_norms: Tensor
    hits: Tensor
    counted: Tensor
    ends: Tensor | None

    def statistics_of_first(self, tokens: int, config: SAEGuardrailConfig) -> Tensor:
        """Return the statistic of each row's first tokens alone, `[batch]`. No later token changes it."""
        first = slice(tokens)
        ends = None if self.ends is None else self.ends[:, first]
        return row_statistic(self.hits[:, first], self.counted[:, first], config, ends).cpu()


def documents_as_fitted(
    corpus: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    role: str,
    config: SAEGuardrailConfig,
    text_column: str = "text",
) -> list[Document]:
    """Return a corpus read as in the fit, with its length and template; see `read_corpus`.

    Raises:
        GuardrailError: If it is empty.
    """
    calibration = config.calibration or {}
    length = calibration.get("max_length")
    length = length if isinstance(length, int) and 1 < length <= ROW_LIMIT else 512
    template = calibration.get("chat_template") is True
    documents = list(read_corpus(corpus, tokenizer, role, length, template, text_column))
    if not documents:
        raise GuardrailError(f"{role}: expected at least one text, got none.")
    return documents


def rows_as_fitted(
    corpus: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    role: str,
    config: SAEGuardrailConfig,
    text_column: str = "text",
) -> list[list[int]]:
    """Return the rows of `documents_as_fitted`."""
    documents = documents_as_fitted(corpus, tokenizer, role, config, text_column)
    return [row for document in documents for row in document.rows]


def content_tokens(batch: ResidualBatch, config: SAEGuardrailConfig) -> Tensor:
    """Return `[batch, seq]` bool: the tokens that are neither padding nor special."""
    return which.content_tokens(config, ConfigTables(), batch.kept, batch.input_ids)


def message_ends(batch: ResidualBatch, config: SAEGuardrailConfig) -> Tensor | None:
    """Return `[batch, seq]` bool: the tokens that end a message; None if the config has none."""
    return which.ends_of_messages(config, ConfigTables(), batch.kept, batch.input_ids)


def judged_tokens(batch: ResidualBatch, config: SAEGuardrailConfig) -> tuple[Tensor, Tensor]:
    """Return `[batch, seq]` bool twice: the counted tokens, and those that can be hot.

    A row is judged by itself here, so the padding of its batch is not among its columns.
    """
    columns, eligible = which.counted_tokens(config, ConfigTables(), batch.kept, batch.input_ids)
    return columns & batch.kept, eligible & batch.kept


def read_batch(batch: ResidualBatch, encoder: nn.Module, config: SAEGuardrailConfig) -> Reading:
    """Return the gate's statistic of each row, independent of its batch, and values at hot tokens.

    Args:
        batch (ResidualBatch): Residual stream of some rows.
        encoder (Module): Module that returns the guarded features' activations `[..., N]`, 0 if not active.
        config (SAEGuardrailConfig): The guardrail's config.
    """
    activations = encoder.to(batch.residual.device)(batch.residual)
    counted, eligible = judged_tokens(batch, config)
    activations = heard(activations, eligible, usual_norm(batch.residual, config))
    active = activations != 0
    hits = hits_of(activations, active, ConfigTables().evidence(config, activations.device), counted, config)
    hot = hot_tokens(active, hits, config)
    ends = message_ends(batch, config)
    return Reading(
        row_statistic(hits, counted, config, ends).cpu(),
        activations[hot][:, : config.num_features],
        batch.residual[hot].float().norm(dim=-1),
        hits,
        counted,
        ends,
    )


def unguarded_residuals(
    model: nn.Module,
    rows: Iterable[list[int]],
    layer: int,
    batch_size: int,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[ResidualBatch]:
    """Yield `residual_batches` with the model's guardrails disabled. Arguments and errors are the same."""
    with guards_off(model):
        yield from residual_batches(model, rows, layer, batch_size, wanted=wanted)
