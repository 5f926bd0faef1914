"""False alarms: what the adapter changes on harmless rows near the topic. Not an attack.

Budget: none; ordinary requests.
"""

from dataclasses import fields
from typing import Any

from sae_unlearn.evaluation.evaluate import evaluate
from sae_unlearn.evaluation.measurement import Measurement
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.options.evaluation import EvaluationConfig, MeasurementConfig


def benign_neighbors(it: Measurement, neighbors: Any, others: Any = None) -> tuple[Report, Report | None]:
    """Run `evaluate` on harmless rows near the topic: fire rates, and the loss of recall and perplexity.

    Controls: `others`, harmless rows far from the topic; and the base model, which gives the second report.

    Args:
        it (Measurement): The tuned model.
        neighbors (list or mapping): Facts, choices or texts near the topic, or a mapping of names to them.
        others (list or mapping, *optional*): The same far from the topic.

    Returns:
        The report of the model, and of the base or None without a base.

    Raises:
        UnlearnError: If all sets are empty.
    """
    sets = {"near": neighbors} | ({} if others is None else {"far": others})
    config = EvaluationConfig(**{each.name: getattr(it.settings, each.name) for each in fields(MeasurementConfig)})
    audited = evaluate(it.model, it.tokenizer, retain=flat(sets), base=it.base, config=config)
    if not it.has_base:
        return audited, None
    title = "without adapters" if it.base is None else "the base model"
    with it.base_model() as base:
        return audited, evaluate(base, it.tokenizer, retain=flat(sets), title=title, config=config)


def flat(sets: dict[str, Any]) -> dict[str, Any]:
    """Return sets and mappings of sets as one mapping, with both names before a set's rows."""
    found: dict[str, Any] = {}
    for name, rows in sets.items():
        found |= {f"{name}: {key}": part for key, part in rows.items()} if isinstance(rows, dict) else {name: rows}
    return found
