"""False alarms: what the adapter changes on harmless rows near the topic. Not an attack.

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
    """Run `evaluate` on harmless rows near the topic: fire rates, and the loss of recall and perplexity.

    Controls: `others`, harmless rows far from the topic; and the base model, which gives the second report.

    Args:
        model (nn.Module): The tuned model.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        neighbours (list or mapping): Facts, choices or texts near the topic, or a mapping of names to them.
        others (list or mapping, *optional*): The same far from the topic.
        base (nn.Module, *optional*): The model without the adapters. None disables the adapters of `model`.
        options: Options of `evaluate`.

    Returns:
        The report of the model, and of the base or None without a base.

    Raises:
        ValueError: If all sets are empty.
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
    """Return sets and mappings of sets as one mapping, with both names before a set's rows."""
    found: dict[str, Any] = {}
    for name, rows in sets.items():
        found |= {f"{name}: {key}": part for key, part in rows.items()} if isinstance(rows, dict) else {name: rows}
    return found
