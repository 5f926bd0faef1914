"""Findings of `check_guardrail`, in sentences: one function for each check."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.identity import compared_matrices, fingerprint
from sae_unlearn.checks import real
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.base_model.match import check_belongs
from sae_unlearn.guardrail.check.probe import STATISTIC_TOLERANCE, probe_statistics
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.fit.calibration import fire_rate
from sae_unlearn.guardrail.refusal_text import difference


Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        subject (str): Name of the check, one or two words.
        status (Status): "ok", "warning" or "problem".
        sentence (str): The finding with its value, and the fix if one is needed.
    """

    subject: str
    status: Status
    sentence: str


@dataclass(frozen=True)
class CheckReport:
    """Findings of `check_guardrail`, in the order of the checks.

    Attributes:
        findings (tuple of Finding): The findings.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True without a problem. Warnings are not problems."""
        return all(finding.status != "problem" for finding in self.findings)


SMALL_EDIT, LARGE_EDIT = 0.05, 1.0
"""Norm of the edit over the norm of the residual stream, between which a dose is "ok".

Measured on Gemma 3 270M, gate always open, on 8 paragraphs of the topic whose loss is 3.5 nats per token: an edit
of 0.06 adds 0.8 nats, 0.24 adds 3.1, and 0.85 adds 8.7, which is the loss of guessing among all tokens alike. Below the
first bound little is forgotten; above the second, sentences break down if the gate fires."""

ENOUGH_FIRES, FEW_FIRES = 0.8, 0.5
"""Bounds of the fire rate on forget rows: "ok" from the first on, a problem below the second."""

MANY_FALSE_FIRES = 0.25
"""Share of other rows on which the gate fires that is a problem, not only more than requested."""


def belonging(config: SAEGuardrailConfig, model: nn.Module) -> Finding:
    """Return the finding on the base model. Its subject is "shape" if the shape differs."""
    origin = config.base_model_name_or_path or "an unnamed model"
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
    base = config.base_model
    shape = f"width {base.hidden_size}, {base.num_layers} layers, guarded after layer {config.layer}"
    if not config.base_model.fingerprint:
        return Finding(
            "base model",
            "warning",
            f"Only the shape was compared ({shape}): the guardrail has no fingerprint of {origin}. Fit it again.",
        )
    if fingerprint(model, config.layer) is None:
        return Finding(
            "base model",
            "warning",
            f"Only the shape was compared ({shape}): the model's weights are not in memory.",
        )
    matrices = compared_matrices(config.base_model.fingerprint, model, config.layer)
    if not matrices.recorded:
        return Finding(
            "base model",
            "warning",
            f"It was fitted on {origin}, whose embedding and norms match ({shape}). Its fingerprint has no matrices, "
            "so a fine-tuned descendant is not detected. Fit it again.",
        )
    if matrices.compared < matrices.recorded:
        return Finding(
            "base model",
            "warning",
            f"It was fitted on {origin}, and this model matches as far as it could be compared ({shape}): "
            f"{matrices.recorded - matrices.compared} of {matrices.recorded} recorded matrices are quantized, sharded "
            "or not in memory here.",
        )
    return Finding("base model", "ok", f"It was fitted on {origin}, and this is that model ({shape}).")


def fires(statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """Return the finding on the fire rate of forget rows with statistics `[n]`."""
    found = fire_rate(statistics, config.tau)
    sentence = f"The gate fires on {_rate(found)} of the forget text"
    if found["rate"] >= ENOUGH_FIRES:
        return Finding("fires", "ok", f"{sentence}.")
    status: Status = "warning" if found["rate"] >= FEW_FIRES else "problem"
    return Finding(
        "fires",
        status,
        f"{sentence}, less than {ENOUGH_FIRES:.0%}: the rest is not guarded. Fit on text in this format and of this "
        "length, or at a lower threshold_percentile.",
    )


def stays_quiet(statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """Return the finding on the fire rate of other rows with statistics `[n]`."""
    found = fire_rate(statistics, config.tau)
    expected = _expected_false_rate(config)
    sentence = f"The gate fires on {_rate(found)} of the other text; at most {expected:.2%} was requested"
    if found["low"] <= expected:
        return Finding("quiet", "ok", f"{sentence}.")
    status: Status = "problem" if found["rate"] >= MANY_FALSE_FIRES else "warning"
    return Finding(
        "quiet", status, f"{sentence}. Add text like this to `retain` and fit again, or raise threshold_percentile."
    )


def same_as_recorded(role: str, statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """Return the finding on stored rows: their statistics must equal those of the fit."""
    subject = "fires" if role == "forget" else "quiet"
    fired = int((statistics > config.tau).sum())
    count = f"The gate fires on {fired} of the {len(statistics)} stored {role} rows"
    then = probe_statistics(config, role)[: len(statistics)]
    if len(then) < len(statistics) or None in then:
        return Finding(subject, "warning", f"{count}; their statistics at the fit are not recorded.")
    before = torch.tensor(then, dtype=torch.float64)
    moved = float(((statistics.double() - before).abs() / before.abs().clamp(min=1)).max())
    if moved > STATISTIC_TOLERANCE:
        return Finding(
            subject,
            "problem",
            f"{count}; their statistics differ by up to {moved:.3f} from those at the fit, more than "
            f"{STATISTIC_TOLERANCE}: the model computes something else. Check its weights, its dtype and its other "
            "adapters.",
        )
    as_wanted = fired > 0 if role == "forget" else fired < len(statistics)
    sentence = f"{count}, as at the fit (statistics equal to {moved:.3f})"
    if as_wanted:
        return Finding(subject, "ok", f"{sentence}.")
    return Finding(subject, "warning", f"{sentence}, which shows little. Check with --{role} and your own text.")


def not_measured(role: str) -> Finding:
    """Return the finding that this role had no rows."""
    subject, what = ("fires", "fires on its topic") if role == "forget" else ("quiet", "is quiet on other text")
    return Finding(
        subject,
        "warning",
        f"Not measured whether the gate {what}: the guardrail has no {role} rows. Pass {role} text, or fit with "
        "store_probe=True.",
    )


def apart(forget: Tensor, retain: Tensor) -> Finding:
    """Return the finding on the separation of statistics of forget rows `[n]` and retain rows `[m]`."""
    low, high = float(retain.median()), float(forget.median())
    sentence = f"The median statistic is {high:.3f} on forget rows and {low:.3f} on other rows"
    if high > low:
        return Finding("margin", "ok", f"{sentence}.")
    return Finding("margin", "problem", f"{sentence}: the features do not separate the topic. Fit it again.")


def message(config: SAEGuardrailConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[Finding]:
    """Return the finding on the text of a refusal, which must be that of its tokens; empty without one."""
    if config.refusal is None or not config.refusal_ids:
        return []
    if tokenizer is None:
        sentence = "The text of the refusal was not compared with its tokens. Pass the model's tokenizer."
        return [Finding("refusal", "warning", sentence)]
    said = difference(config, tokenizer)
    if said is None:
        return [Finding("refusal", "ok", f'A row that fires is answered with "{config.refusal[:200]}".')]
    sentence = f'The refusal of the config is "{config.refusal[:100]}", but its tokens decode to "{said[:100]}".'
    return [Finding("refusal", "problem", sentence)]


def dose(config: SAEGuardrailConfig, measured: float | None) -> list[Finding]:
    """Return the findings on the size of the edit.

    Args:
        config (SAEGuardrailConfig): The guardrail's config.
        measured (float or None): Norm of the edit over that of the residual stream on these rows; None if not measured.
    """
    if config.action == "record":
        return [Finding("dose", "warning", 'action="record": it only reports and does not edit.')]
    recorded = real((config.calibration or {}).get("edit_to_residual"))
    size = recorded if measured is None else measured
    if size is None:
        sentence = "The size of the edit was not measured, neither here nor at the fit. Pass forget text."
        return [Finding("dose", "warning", sentence)]
    how = "as recorded at the fit" if measured is None else "measured here"
    sentence = f"The edit's typical norm is {size:.3g} times the residual stream's, {how}"
    findings = [Finding("dose", "ok", f"{sentence} (expected {SMALL_EDIT} to {LARGE_EDIT}).")]
    if size < SMALL_EDIT:
        fix = f"below {SMALL_EDIT} it has little effect. Raise clamp_scale."
        findings = [Finding("dose", "problem", f"{sentence}; {fix}")]
    elif size > LARGE_EDIT:
        fix = f"above {LARGE_EDIT} answers break down if the gate fires. Lower clamp_scale."
        findings = [Finding("dose", "warning", f"{sentence}; {fix}")]
    if measured is not None and recorded and not 0.5 <= measured / recorded <= 2:
        findings.append(
            Finding(
                "dose",
                "warning",
                f"At the fit the edit was {recorded:.3g} times the residual norm, and here it is {measured:.3g}: the "
                "text is of another kind, or the model computes something else.",
            )
        )
    return findings


def _expected_false_rate(config: SAEGuardrailConfig) -> float:
    percentile = real((config.calibration or {}).get("threshold_percentile"))
    return 0.05 if percentile is None else min(max(1 - percentile / 100, 0.0), 1.0)


def _rate(found: dict[str, Any]) -> str:
    return f"{found['rate']:.0%} ({found['low']:.0%} to {found['high']:.0%}) of {found['n']} rows"
