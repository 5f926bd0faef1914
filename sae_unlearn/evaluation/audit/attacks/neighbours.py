"""No attack, but the other side of one: what is blocked that should not be.

Text and questions close to the topic, that do not belong to it, are measured with the adapter and without.

Budget: none; ordinary requests.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.evaluation.base_model import has_adapters, without_adapters
from sae_unlearn.evaluation.evaluate import evaluate
from sae_unlearn.evaluation.report.report import Report


def benign_neighbours(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    neighbours: Any,
    others: Any = None,
    base: nn.Module | None = None,
    **options: Any,
) -> tuple[Report, Report | None]:
    """`evaluate` on harmless rows near the topic: how often the gate fires, and what is lost of recall and perplexity.

    Control: `others`, harmless rows far from the topic, by which the near ones are to be judged; and the base model,
    which is the second report (None where there is none).

    Args:
        neighbours, others: facts, choices or texts, or mappings of names to them, as in `evaluate`.
        base: the model without the adapters; None takes `model` with its adapters out of force.
        options: of `evaluate`.

    Raises:
        ValueError: nothing to measure.
    """
    sets = {"near": neighbours} | ({} if others is None else {"far": others})
    audited = evaluate(model, tokenizer, retain=flat(sets), base=base, **options)
    if base is not None:
        return audited, evaluate(base, tokenizer, retain=flat(sets), title="the base model", **options)
    if not has_adapters(model):
        return audited, None
    with without_adapters(model) as bare:
        return audited, evaluate(bare, tokenizer, retain=flat(sets), title="without adapters", **options)


def flat(sets: dict[str, Any]) -> dict[str, Any]:
    """Sets and mappings of sets as one mapping, the names of both before a set's rows."""
    found: dict[str, Any] = {}
    for name, rows in sets.items():
        found |= {f"{name}: {key}": part for key, part in rows.items()} if isinstance(rows, dict) else {name: rows}
    return found
