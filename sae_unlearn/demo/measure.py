"""Measurements of the demo on a model, before and after."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.demo.texts import SIDES, DemoTexts
from sae_unlearn.evaluation import Recall, complete, recall, row_losses
from sae_unlearn.guardrail import guard_layers, record_firings


FACT_TOKENS = 6
FACT_BATCH = 24  # facts are short, and each step reads the whole head once a batch
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Snapshot:
    """Results of one model, each by side ("forget" or "retain").

    Attributes:
        losses (dict[str, Tensor]): Cross-entropy of the held-out paragraphs, `[n]`, in nats per token.
        recalls (dict[str, list[Recall]]): Recall of each fact.
        answers (dict[str, list[str]]): Continuations of the prompts.
        fired_texts (dict[str, int] or None): Number of paragraphs on which the gate fired; None without a guardrail.
        fired_facts (dict[str, int] or None): Number of facts on which the gate fired; None without a guardrail.
    """

    losses: dict[str, Tensor]
    recalls: dict[str, list[Recall]]
    answers: dict[str, list[str]]
    fired_texts: dict[str, int] | None
    fired_facts: dict[str, int] | None


def measure(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: DemoTexts, title: str, progress: bool
) -> Snapshot:
    """Measure a model, with its guardrails if it has any."""
    losses, recalls = {}, {}
    fired_texts: dict[str, Any] = {}
    fired_facts: dict[str, Any] = {}
    for side in SIDES:
        with _counting(model, fired_texts, side):
            bar = f"{title}: loss, {side} text" if progress else None
            losses[side] = row_losses(model, tokenizer, texts.heldout[side], progress=bar)
        with _counting(model, fired_facts, side):
            bar = f"{title}: recall, {side} facts" if progress else None
            recalls[side] = recall(
                model, tokenizer, texts.facts[side], max_new_tokens=FACT_TOKENS, batch_size=FACT_BATCH, progress=bar
            )
    return Snapshot(
        losses,
        recalls,
        answers(model, tokenizer, texts),
        fired_texts if guard_layers(model) else None,
        fired_facts if guard_layers(model) else None,
    )


def answers(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: DemoTexts) -> dict[str, list[str]]:
    """Return greedy continuations of the prompts of both sides, generated in one batch."""
    prompts = [prompt for side in SIDES for prompt in texts.prompts[side]]
    continued = complete(model, tokenizer, prompts, max_new_tokens=ANSWER_TOKENS)
    first = len(texts.prompts[SIDES[0]])
    return {SIDES[0]: continued[:first], SIDES[1]: continued[first:]}


@contextmanager
def _counting(model: nn.Module, counts: dict[str, int], side: str) -> Iterator[None]:
    """Set `counts[side]` to the number of rows on which the gate fired in the block."""
    if not guard_layers(model):
        yield
        return
    with record_firings(model) as firings:
        yield
        counts[side] = sum(firing.fired for firing in firings)
