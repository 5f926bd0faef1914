"""The probe of a guardrail: rows of the fit, on which the gate must do what it did then."""

from dataclasses import dataclass
from typing import Any

from sae_unlearn.checks import real
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.offline import ROW_LIMIT


STATISTIC_TOLERANCE = 0.05
"""Relative difference of a statistic from that of the fit which rounding explains.

Half precision moves a token in twenty across an SAE's thresholds."""

_PROBE_LIMIT = 16  # rows


@dataclass(frozen=True)
class ProbeRow:
    """A row of the probe.

    Attributes:
        role (str): "forget" or "retain".
        ids (list[int]): Its tokens.
        fires (bool or None): Whether the gate fired on it at the fit. None if that is not recorded, or so close to the
            threshold that rounding decides.
    """

    role: str
    ids: list[int]
    fires: bool | None


def stored_probe(config: SAEGuardrailConfig, vocabulary: int) -> tuple[dict[str, list[list[int]]], str | None]:
    """Return the stored rows by role, or an error on them: the file is untrusted.

    Args:
        config (SAEGuardrailConfig): Config of a guardrail.
        vocabulary (int): Number of token ids of the model.
    """
    probe = (config.calibration or {}).get("probe")
    if probe is None:
        return {}, None
    sound = isinstance(probe, dict) and all(
        isinstance(rows, list) and len(rows) <= _PROBE_LIMIT and all(_is_sound(row, vocabulary) for row in rows)
        for rows in probe.values()
    )
    if not sound:
        return {}, (
            f"probe: expected at most {_PROBE_LIMIT} rows of token ids below {vocabulary}. Pass forget and retain text "
            "instead."
        )
    return probe, None


def probe_statistics(config: SAEGuardrailConfig, role: str) -> list[float | None]:
    """Return the recorded statistics of a role's stored rows, with None for what is not a number."""
    found = (config.calibration or {}).get("probe_statistics")
    values = found.get(role) if isinstance(found, dict) else None
    return [real(value) for value in values[:_PROBE_LIMIT]] if isinstance(values, list) else []


def probe_rows(config: SAEGuardrailConfig, vocabulary: int, longest: int | None = None) -> list[ProbeRow]:
    """Return the stored rows with what the gate did on them at the fit; empty without a sound probe.

    Args:
        config (SAEGuardrailConfig): Config of a guardrail.
        vocabulary (int): Number of token ids of the model.
        longest (int, *optional*): Number of tokens to which rows are cut. What the gate does on a cut row is not known.
    """
    found = []
    for role, rows in stored_probe(config, vocabulary)[0].items():
        recorded = probe_statistics(config, role)
        for number, ids in enumerate(rows):
            value = recorded[number] if number < len(recorded) else None
            cut = longest is not None and len(ids) > longest
            fires = None if value is None or cut else _fires(value, config.tau)
            found.append(ProbeRow(role, ids[:longest], fires))
    return found


def _fires(statistic: float, threshold: float) -> bool | None:
    if abs(statistic - threshold) <= STATISTIC_TOLERANCE * max(abs(statistic), 1.0):
        return None
    return statistic > threshold


def _is_sound(row: Any, vocabulary: int) -> bool:
    return (
        isinstance(row, list)
        and 1 <= len(row) <= ROW_LIMIT
        and all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocabulary for token in row)
    )
