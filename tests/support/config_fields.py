"""Fields of a guardrail's config by their own names: tests set one of a group as they set one that stands alone."""

from dataclasses import fields, replace
from typing import Any

from sae_unlearn.guardrail import BaseRecord, SAEGuardrailConfig, StatisticKwargs, TokenRules


GROUPS = {"statistic_kwargs": StatisticKwargs, "tokens": TokenRules, "base_model": BaseRecord}
PLACES = {each.name: group for group, kind in GROUPS.items() for each in fields(kind)}


def grouped(**given: Any) -> dict[str, Any]:
    """`min_tokens=8, threshold=0.1` as `SAEGuardrailConfig` takes them, and as its file holds them."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in PLACES:
            found[name] = value
    for name, value in given.items():
        if name in PLACES:
            group = found.get(PLACES[name])
            found[PLACES[name]] = (group if isinstance(group, dict) else {}) | {name: value}
    return found


def with_fields(stored: dict[str, Any], **given: Any) -> dict[str, Any]:
    """A stored config with other fields."""
    changed = grouped(**given)
    inside = {name: stored[name] | changed[name] for name in GROUPS if isinstance(changed.get(name), dict)}
    return stored | changed | inside


def assign(config: SAEGuardrailConfig, **given: Any) -> None:
    """Set fields of a config that may be on a model, those of a group too."""
    for name, value in grouped(**given).items():
        setattr(config, name, replace(getattr(config, name), **value) if name in GROUPS else value)
