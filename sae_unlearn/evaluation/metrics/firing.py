"""On which texts the guardrails of a model fire."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import gathered, is_mine
from sae_unlearn.backbone.logits import run_for_hooks
from sae_unlearn.evaluation.metrics.text import predicted_tokens
from sae_unlearn.guardrail import record_firings
from sae_unlearn.guardrail.runtime.recording import Firings


@torch.no_grad()
def row_firings(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 8,
    max_length: int = 512,
    progress: str | None = None,
    shared: bool = False,
) -> dict[str, Tensor]:
    """Whether each guardrail fires on each text, read in one forward pass: `[n]` bool by the adapter's name.

    Args:
        model: a model with guardrails.
        batch_size: texts per forward pass; the result does not depend on it.
        max_length: tokens of a text at most; what is longer is cut.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.

    Raises:
        GuardrailError: there is no guardrail on the model.
        ValueError: a text has no token.
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
    """The firings of rows that were given one after the other, `[n]` bool by the adapter's name.

    Args:
        rows: their numbers, from 0 to n - 1, in the order in which they were given.
        shared: those of this process; the others have the others.

    Raises:
        ValueError: a guardrail reported another number of rows; it was not active all the time.
    """
    found: dict[str, list[bool]] = {}
    for firing in firings:
        found.setdefault(firing.adapter, []).append(firing.fired)
    for name, fired in found.items():
        if len(fired) != len(rows):
            raise ValueError(
                f"Guardrail {name!r} reported {len(fired)} of {len(rows)} rows; leave it on or off while it is "
                "measured."
            )
    parts = gathered((list(rows), found)) if shared else [(list(rows), found)]
    total = sum(len(numbers) for numbers, _ in parts)
    whole = {name: torch.zeros(total, dtype=torch.bool) for _, part in parts for name in part}
    for numbers, part in parts:
        for name, fired in part.items():
            whole[name][numbers] = torch.tensor(fired)
    return whole
