"""Judgment of a server's own test: the gate must do on the stored rows what it did at the fit."""

from collections.abc import Sequence

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.check.probe import ProbeRow, probe_rows
from sae_unlearn.guardrail.config import SAEGuardrailConfig


PLAIN_TOKENS = 8
"""Tokens of the row that a guardrail without a probe has to judge."""

NO_PROBE = (
    "it judges; without a probe, it was not tested whether it fires. Fit with --store-probe, or run "
    "`sae-unlearn check --url URL --forget DATA`"
)


def rows_to_test(config: SAEGuardrailConfig, vocabulary: int, longest: int) -> list[ProbeRow]:
    """Return the stored rows of a guardrail, or else one row of tokens that are not special.

    Args:
        config (SAEGuardrailConfig): Its config.
        vocabulary (int): Number of token ids of the model.
        longest (int): Largest number of tokens of a row.
    """
    stored = probe_rows(config, vocabulary, longest)
    if stored:
        return stored
    special = {*(config.tokens.special_ids or ()), *(config.tokens.boundary_ids or ())}
    ids = [token for token in range(vocabulary // 2, vocabulary) if token not in special]
    return [ProbeRow("neither", ids[: min(longest, PLAIN_TOKENS)], None)]


def finding(name: str, rows: Sequence[ProbeRow], fired: Sequence[bool], unedited: bool = True) -> str:
    """Return a sentence on the rows of a guardrail.

    Args:
        name (str): Its name.
        rows (Sequence[ProbeRow]): Those of `rows_to_test`.
        fired (Sequence[bool]): Whether it fired on each.
        unedited (bool, *optional*, defaults to True): False if another guardrail may have edited the stream before it.
            It is only reported then what it did.

    Raises:
        GuardrailError: If the gate did something else than at the fit.
    """
    wrong = [row for row, did in zip(rows, fired, strict=True) if unedited and row.fires not in (None, did)]
    if wrong:
        raise GuardrailError(
            f"guardrail {name}: expected the gate to do on {len(rows)} stored rows what it did at the fit, got "
            f"{len(wrong)} different. The model computes something else. Check its weights, dtype and adapters."
        )
    parts = []
    for role, what in (("forget", "rows on the topic"), ("retain", "other rows")):
        own = [did for row, did in zip(rows, fired, strict=True) if row.role == role]
        if own:
            parts.append(f"{sum(own)} of {len(own)} stored {what}")
    if not parts:
        return NO_PROBE
    return f"it fired on {' and '.join(parts)}{', as at the fit' if unedited else ''}"
