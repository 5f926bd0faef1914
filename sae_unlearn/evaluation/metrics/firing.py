"""Texts on which the guardrails of a model fire."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import gathered, is_mine
from sae_unlearn.backbone.logits import run_for_hooks
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.text import predicted_tokens
from sae_unlearn.guardrail import record_firings
from sae_unlearn.guardrail.runtime.recording import Firings
from sae_unlearn.options.evaluation import MeasurementConfig


@torch.no_grad()
def row_firings(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = MeasurementConfig.batch_size,
    max_length: int = MeasurementConfig.max_length,
    progress: str | None = None,
    shared: bool = False,
) -> dict[str, Tensor]:
    """Return the firings of each guardrail on each text in one forward pass, `[n]` bool by adapter name.

    Args:
        model (nn.Module): A model with guardrails.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        texts (sequence of str): The texts.
        batch_size (int, *optional*, defaults to 8): Texts per forward pass. The result does not depend on it.
        max_length (int, *optional*, defaults to 512): Tokens of a text at most; longer ones are cut.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Raises:
        GuardrailError: If the model has no guardrail.
        UnlearnError: If a text has no token.
    """
    mine: list[int] = []
    with (
        record_firings(model) as firings,
        tqdm(total=len(texts), desc=progress, unit="text", disable=progress is None) as bar,
    ):
        for number, batch in enumerate(predicted_tokens(tokenizer, texts, batch_size, max_length)):
            if is_mine(number) or not shared:
                run_for_hooks(model, batch.input_ids, batch.kept)
                mine += batch.index
            bar.update(len(batch.index))
        return fired_rows(firings, mine, shared)


def fired_rows(firings: Firings, rows: Sequence[int], shared: bool = False) -> dict[str, Tensor]:
    """Return the firings of rows that were run one after the other, `[n]` bool by adapter name.

    Args:
        firings (Firings): The recorded firings.
        rows (sequence of int): Indices of the rows, 0 to n - 1, in the order in which they were run.
        shared (bool, *optional*, defaults to False): `rows` are those of this process of a launch.

    Raises:
        UnlearnError: If a guardrail reported another number of rows, so that it was not enabled all the time.
    """
    found: dict[str, list[bool]] = {}
    for firing in firings:
        found.setdefault(firing.adapter, []).append(firing.fired)
    for name, fired in found.items():
        if len(fired) != len(rows):
            raise UnlearnError(
                f"adapter_name={name!r}: expected {len(rows)} rows, got {len(fired)}. "
                "Do not enable or disable it meanwhile."
            )
    parts = gathered((list(rows), found)) if shared else [(list(rows), found)]
    total = sum(len(numbers) for numbers, _ in parts)
    whole = {name: torch.zeros(total, dtype=torch.bool) for _, part in parts for name in part}
    for numbers, part in parts:
        for name, fired in part.items():
            whole[name][numbers] = torch.tensor(fired)
    return whole
