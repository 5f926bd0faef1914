"""`check_guardrail`: does a guardrail belong to a model, is its dose enough, and does its gate do what it should?"""

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.decoder_layers import input_embeddings
from sae_unlearn.guardrail.artefact import Artefact, read_artefact
from sae_unlearn.guardrail.attach import bare_model
from sae_unlearn.guardrail.belonging import check_belongs
from sae_unlearn.guardrail.calibration import fire_rate
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.dose import EditMoments
from sae_unlearn.guardrail.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.fingerprint import fingerprint
from sae_unlearn.guardrail.layer import GuardrailEncoder
from sae_unlearn.guardrail.reading import ROW_LIMIT, content_tokens, read_batch, rows_as_fitted
from sae_unlearn.guardrail.unguarded import unguarded_residuals


SMALL_EDIT, LARGE_EDIT = 0.05, 1.0
"""Norm of the edit over the norm of the residual stream, between which a dose is called right.

Measured on Gemma 3 270M, gate always open, on 8 paragraphs of the topic whose loss is 3.5 nats per token: an edit
of 0.06 adds 0.8 nats, 0.24 adds 3.1, and 0.85 adds 8.7, which is the loss of guessing among all tokens alike. Below the
first bound little is forgotten; above the second nothing of a sentence is left wherever the gate fires."""

ENOUGH_FIRES, FEW_FIRES = 0.8, 0.5
"""Shares of forget rows on which the gate fires: from the first on it is right, below the second it is a problem."""

MANY_FALSE_FIRES = 0.25
"""Share of other rows from which firing is a problem, and not only more than was asked for."""

_STATISTIC_TOLERANCE = 0.05  # half precision moves a token in twenty across an SAE's thresholds
_PROBE_LIMIT = 16  # rows; and tokens below

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is about, in a word or two.
        status: "ok", "warning" or "problem".
        sentence: what was found, with its value, and the mend if there is something to mend.
    """

    subject: str
    status: Status
    sentence: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_guardrail` found, in the order in which it looked."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem; warnings are not problems."""
        return all(finding.status != "problem" for finding in self.findings)


@dataclass(frozen=True)
class _Measured:
    """What the guardrail makes of some rows: statistics `[n]`, the norms of all residuals, and the edits' moments."""

    statistics: Tensor
    norms: Tensor
    moments: EditMoments


@as_guardrail_error()
def check_guardrail(
    model: nn.Module,
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    forget: Iterable[Any] | None = None,
    retain: Iterable[Any] | None = None,
    *,
    text_column: str = "text",
    batch_size: int = 8,
    **hub: Any,
) -> CheckReport:
    """Look whether a guardrail will work on a model. The model is not changed, and is run up to the guarded layer only.

    Args:
        model: the model it is to be attached to.
        source: a local folder or a Hub repository.
        tokenizer: the model's; needed where `forget` or `retain` is text.
        forget: rows of the topic, as for `fit_guardrail`. None: those stored in the artefact (`store_probe`), if any.
        retain: other rows, likewise.
        text_column: column of datasets and mappings that holds the text.
        batch_size: rows per forward pass.
        hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, as in `huggingface_hub`.

    Returns:
        The findings, in sentences.

    Raises:
        GuardrailError: there is no guardrail at `source`, or it is malformed.
    """
    artefact = read_artefact(source, **hub)
    config, bare = artefact.config, bare_model(model)
    belongs = _belonging(config, bare)
    if belongs.subject == "shape" and belongs.status == "problem":
        return CheckReport((belongs,))  # nothing can be measured on a model of another shape
    findings = [belongs]
    probe, malformed = _probe(config, bare)
    if malformed:
        findings.append(Finding("probe", "problem", malformed))
    measured: dict[str, _Measured] = {}
    for role, corpus in (("forget", forget), ("retain", retain)):
        stored = corpus is None
        rows = probe.get(role, []) if corpus is None else rows_as_fitted(corpus, tokenizer, role, config, text_column)
        if rows:
            measured[role] = _measure(artefact, bare, rows, batch_size)
        if stored and rows:
            findings.append(_same_as_recorded(role, measured[role].statistics, config))
        elif rows:
            judge = _fires if role == "forget" else _stays_quiet
            findings.append(judge(measured[role].statistics, config))
        else:
            findings.append(_not_measured(role))
    if forget is not None and retain is not None:  # two stored rows are too few to compare
        findings.append(_apart(measured["forget"].statistics, measured["retain"].statistics))
    findings += _dose(config, artefact.tensors["decoder.clamp"], measured)
    recorded = (config.calibration or {}).get("warnings")
    findings += [Finding("fit", "warning", text) for text in _strings(recorded)]
    return CheckReport(tuple(findings))


# -------------------------------------------------------------------------------------------------- what is judged


def _belonging(config: SAEGuardrailConfig, model: nn.Module) -> Finding:
    origin = config.base_model_name_or_path or "a model it does not name"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_belongs(config, model, check_base=False)
        except GuardrailError as error:
            return Finding("shape", "problem", str(error))
    if caught:
        return Finding(
            "base model", "problem", f"{caught[0].message} If it is a descendant, attach with check_base=False."
        )
    shape = f"width {config.hidden_size}, {config.num_layers} layers, guarded after layer {config.layer}"
    if not config.base_fingerprint:
        return Finding(
            "base model",
            "warning",
            f"Only the shape fits ({shape}): the artefact holds no fingerprint of {origin}; fit it again to have one.",
        )
    if fingerprint(model, config.layer) is None:
        return Finding(
            "base model",
            "warning",
            f"Only the shape fits ({shape}): the model's weights are not in memory and could not be compared.",
        )
    return Finding("base model", "ok", f"It was fitted on {origin}, and this is that model ({shape}).")


def _fires(statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    found = fire_rate(statistics, config.tau)
    sentence = f"The gate fires on {_rate(found)} of the forget text"
    if found["rate"] >= ENOUGH_FIRES:
        return Finding("fires", "ok", f"{sentence}.")
    status: Status = "warning" if found["rate"] >= FEW_FIRES else "problem"
    return Finding(
        "fires",
        status,
        f"{sentence}, less than {ENOUGH_FIRES:.0%}: what passes is not guarded. Fit on text in this format and of this "
        "length, or at a lower threshold_percentile.",
    )


def _stays_quiet(statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    found = fire_rate(statistics, config.tau)
    expected = _expected_false_rate(config)
    sentence = f"The gate fires on {_rate(found)} of the other text; {expected:.2%} at most were asked for"
    if found["low"] <= expected:
        return Finding("quiet", "ok", f"{sentence}.")
    status: Status = "problem" if found["rate"] >= MANY_FALSE_FIRES else "warning"
    return Finding(
        "quiet", status, f"{sentence}. Add text like this to `retain` and fit again, or raise threshold_percentile."
    )


def _same_as_recorded(role: str, statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """The stored rows were measured when the guardrail was fitted; the gate must read them now as it did then."""
    subject = "fires" if role == "forget" else "quiet"
    fired = int((statistics > config.tau).sum())
    count = f"The gate fires on {fired} of the {len(statistics)} stored {role} rows"
    recorded = (config.calibration or {}).get(f"statistic_{role}")
    then = [_real(value) for value in recorded[: len(statistics)]] if isinstance(recorded, list) else []
    if len(then) < len(statistics) or None in then:
        return Finding(subject, "warning", f"{count}, and what it made of them when fitted is not recorded.")
    before = torch.tensor(then, dtype=torch.float64)
    moved = float(((statistics.double() - before).abs() / before.abs().clamp(min=1)).max())
    if moved > _STATISTIC_TOLERANCE:
        return Finding(
            subject,
            "problem",
            f"{count}, whose statistic is off by up to {moved:.3f} from that at the fit, more than "
            f"{_STATISTIC_TOLERANCE}: the model is not computing what it did. Look at its weights, its dtype and its "
            "other adapters.",
        )
    as_wanted = fired > 0 if role == "forget" else fired < len(statistics)
    sentence = f"{count}, as when it was fitted (statistics equal to {moved:.3f})"
    if as_wanted:
        return Finding(subject, "ok", f"{sentence}.")
    return Finding(subject, "warning", f"{sentence}, so they say little; check with --{role} and text of your own.")


def _not_measured(role: str) -> Finding:
    subject, what = ("fires", "fires on its topic") if role == "forget" else ("quiet", "stays quiet elsewhere")
    return Finding(
        subject,
        "warning",
        f"Whether the gate {what} was not measured: the artefact holds no {role} rows. Give {role} text, or fit with "
        "store_probe=True.",
    )


def _apart(forget: Tensor, retain: Tensor) -> Finding:
    low, high = float(retain.median()), float(forget.median())
    sentence = f"The median statistic is {high:.3f} on forget rows and {low:.3f} on other rows"
    if high > low:
        return Finding("margin", "ok", f"{sentence}.")
    return Finding("margin", "problem", f"{sentence}: the guarded features do not know the topic. Fit it again.")


def _dose(config: SAEGuardrailConfig, clamp: Tensor, measured: dict[str, _Measured]) -> list[Finding]:
    recorded = _real((config.calibration or {}).get("edit_to_residual"))
    source = measured.get("forget")
    size = None
    if source is not None and source.moments.tokens:
        norm = torch.cat([part.norms for part in measured.values()]).median()
        size = source.moments.norm(clamp) / float(norm)
    if config.action == "record":
        return [Finding("dose", "warning", 'action="record": it only reports, and edits nothing.')]
    known = size if size is not None else recorded
    if known is None:
        return [
            Finding(
                "dose",
                "warning",
                "How large the edit is was not measured, here or at the fit; give forget text.",
            )
        ]
    how = "measured here" if size is not None else "as recorded at the fit"
    sentence = f"The edit's typical norm is {known:.3g} times the residual stream's, {how}"
    findings = []
    if known < SMALL_EDIT:
        findings.append(
            Finding("dose", "problem", f"{sentence}; below {SMALL_EDIT} it does little. Raise clamp_scale.")
        )
    elif known > LARGE_EDIT:
        findings.append(
            Finding(
                "dose",
                "warning",
                f"{sentence}; above {LARGE_EDIT} answers break down where it fires. Lower clamp_scale.",
            )
        )
    else:
        findings.append(Finding("dose", "ok", f"{sentence} (right between {SMALL_EDIT} and {LARGE_EDIT})."))
    if size is not None and recorded and not 0.5 <= size / recorded <= 2:
        findings.append(
            Finding(
                "dose",
                "warning",
                f"At the fit the edit was {recorded:.3g} times the residual norm, and here it is {size:.3g}; the text "
                "here is of another kind, or the model computes something else.",
            )
        )
    return findings


# ---------------------------------------------------------------------------------------------- how it is measured


def _measure(artefact: Artefact, model: nn.Module, rows: list[list[int]], batch_size: int) -> _Measured:
    config, tensors = artefact.config, artefact.tensors
    encoder = GuardrailEncoder(config.width, config.num_features)
    for name, parameter in encoder.named_parameters():
        parameter.data.copy_(tensors[f"encoder.{name}"])
    moments = EditMoments(tensors["decoder.weight"], config.clamp_mode)
    statistics, norms = torch.zeros(len(rows)), []
    for batch in unguarded_residuals(model, rows, config.layer, batch_size):
        reading = read_batch(batch, encoder, config)
        statistics[batch.index] = reading.statistics
        norms.append(batch.residual[content_tokens(batch, config)].float().norm(dim=-1).cpu())
        moments.add(reading.hot_activations)
    return _Measured(statistics, torch.cat(norms), moments)


def _probe(config: SAEGuardrailConfig, model: nn.Module) -> tuple[dict[str, list[list[int]]], str | None]:
    """The stored rows by role, and what is wrong with them: they come from a file that anybody may have written."""
    probe = (config.calibration or {}).get("probe")
    if probe is None:
        return {}, None
    vocabulary = input_embeddings(model).weight.shape[0]
    sound = isinstance(probe, dict) and all(
        isinstance(rows, list) and len(rows) <= _PROBE_LIMIT and all(_sound_row(row, vocabulary) for row in rows)
        for rows in probe.values()
    )
    if not sound:
        return {}, (
            f"The stored probe is not made of up to {_PROBE_LIMIT} rows of token ids below {vocabulary}; give forget "
            "and retain text instead."
        )
    return probe, None


def _sound_row(row: Any, vocabulary: int) -> bool:
    return (
        isinstance(row, list)
        and 1 <= len(row) <= ROW_LIMIT
        and all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocabulary for token in row)
    )


def _expected_false_rate(config: SAEGuardrailConfig) -> float:
    percentile = _real((config.calibration or {}).get("threshold_percentile"))
    return 0.05 if percentile is None else min(max(1 - percentile / 100, 0.0), 1.0)


def _rate(found: dict[str, Any]) -> str:
    return f"{found['rate']:.0%} ({found['low']:.0%} to {found['high']:.0%}) of {found['n']} rows"


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
