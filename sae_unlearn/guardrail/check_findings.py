"""What `check_guardrail` says of each thing that it looks at.

What `check_guardrail` gives: findings, in sentences.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.identity import compared_matrices, fingerprint
from sae_unlearn.checks import real
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.base_match import check_belongs
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.fit.calibration import fire_rate
from sae_unlearn.guardrail.refusal_text import difference


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


def belonging(config: SAEGuardrailConfig, model: nn.Module) -> Finding:
    """Whether it is the model that the guardrail was fitted on, or has its shape; else the subject is "shape"."""
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
    base = config.base_model
    shape = f"width {base.hidden_size}, {base.num_layers} layers, guarded after layer {config.layer}"
    if not config.base_model.fingerprint:
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
    matrices = compared_matrices(config.base_model.fingerprint, model, config.layer)
    if not matrices.recorded:
        return Finding(
            "base model",
            "warning",
            f"It was fitted on {origin}, whose embedding and norms these are ({shape}). The artefact records no "
            "matrices, so a fine-tuned descendant would pass as well; fit it again to tell one.",
        )
    if matrices.compared < matrices.recorded:
        return Finding(
            "base model",
            "warning",
            f"It was fitted on {origin}, and this is that model as far as it could be compared ({shape}): "
            f"{matrices.recorded - matrices.compared} of {matrices.recorded} recorded matrices are quantised, sharded "
            "or not in memory here.",
        )
    return Finding("base model", "ok", f"It was fitted on {origin}, and this is that model ({shape}).")


def fires(statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """Whether the gate fires on rows of the topic, by their statistics `[n]`."""
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


def stays_quiet(statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """Whether it fires on no more of other rows than was asked for, by their statistics `[n]`."""
    found = fire_rate(statistics, config.tau)
    expected = _expected_false_rate(config)
    sentence = f"The gate fires on {_rate(found)} of the other text; {expected:.2%} at most were asked for"
    if found["low"] <= expected:
        return Finding("quiet", "ok", f"{sentence}.")
    status: Status = "problem" if found["rate"] >= MANY_FALSE_FIRES else "warning"
    return Finding(
        "quiet", status, f"{sentence}. Add text like this to `retain` and fit again, or raise threshold_percentile."
    )


def same_as_recorded(role: str, statistics: Tensor, config: SAEGuardrailConfig) -> Finding:
    """The stored rows were measured when the guardrail was fitted; the gate must read them now as it did then."""
    subject = "fires" if role == "forget" else "quiet"
    fired = int((statistics > config.tau).sum())
    count = f"The gate fires on {fired} of the {len(statistics)} stored {role} rows"
    recorded = (config.calibration or {}).get(f"statistic_{role}")
    then = [real(value) for value in recorded[: len(statistics)]] if isinstance(recorded, list) else []
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


def not_measured(role: str) -> Finding:
    """That there were no rows of this role."""
    subject, what = ("fires", "fires on its topic") if role == "forget" else ("quiet", "stays quiet elsewhere")
    return Finding(
        subject,
        "warning",
        f"Whether the gate {what} was not measured: the artefact holds no {role} rows. Give {role} text, or fit with "
        "store_probe=True.",
    )


def apart(forget: Tensor, retain: Tensor) -> Finding:
    """Whether rows of the topic have the higher statistics, `[n]` and `[m]`."""
    low, high = float(retain.median()), float(forget.median())
    sentence = f"The median statistic is {high:.3f} on forget rows and {low:.3f} on other rows"
    if high > low:
        return Finding("margin", "ok", f"{sentence}.")
    return Finding("margin", "problem", f"{sentence}: the guarded features do not know the topic. Fit it again.")


def message(config: SAEGuardrailConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[Finding]:
    """Whether the text of a refusal is that of its tokens; empty without a text."""
    if config.refusal is None or not config.refusal_ids:
        return []
    if tokenizer is None:
        sentence = "The text of the refusal was not compared with its tokens; pass the model's tokenizer."
        return [Finding("refusal", "warning", sentence)]
    said = difference(config, tokenizer)
    if said is None:
        return [Finding("refusal", "ok", f'A sequence that fires is answered with "{config.refusal[:200]}".')]
    sentence = f'The config says that the refusal is "{config.refusal[:100]}", and its tokens say "{said[:100]}".'
    return [Finding("refusal", "problem", sentence)]


def dose(config: SAEGuardrailConfig, measured: float | None) -> list[Finding]:
    """Whether the edit is of the right size.

    Args:
        measured: its typical norm over that of the residual stream, here; None if it was not measured.
    """
    if config.action == "record":
        return [Finding("dose", "warning", 'action="record": it only reports, and edits nothing.')]
    recorded = real((config.calibration or {}).get("edit_to_residual"))
    size = recorded if measured is None else measured
    if size is None:
        sentence = "How large the edit is was not measured, here or at the fit; give forget text."
        return [Finding("dose", "warning", sentence)]
    how = "as recorded at the fit" if measured is None else "measured here"
    sentence = f"The edit's typical norm is {size:.3g} times the residual stream's, {how}"
    findings = [Finding("dose", "ok", f"{sentence} (right between {SMALL_EDIT} and {LARGE_EDIT}).")]
    if size < SMALL_EDIT:
        mend = f"below {SMALL_EDIT} it does little. Raise clamp_scale."
        findings = [Finding("dose", "problem", f"{sentence}; {mend}")]
    elif size > LARGE_EDIT:
        mend = f"above {LARGE_EDIT} answers break down where it fires. Lower clamp_scale."
        findings = [Finding("dose", "warning", f"{sentence}; {mend}")]
    if measured is not None and recorded and not 0.5 <= measured / recorded <= 2:
        findings.append(
            Finding(
                "dose",
                "warning",
                f"At the fit the edit was {recorded:.3g} times the residual norm, and here it is {measured:.3g}; the "
                "text here is of another kind, or the model computes something else.",
            )
        )
    return findings


def _expected_false_rate(config: SAEGuardrailConfig) -> float:
    percentile = real((config.calibration or {}).get("threshold_percentile"))
    return 0.05 if percentile is None else min(max(1 - percentile / 100, 0.0), 1.0)


def _rate(found: dict[str, Any]) -> str:
    return f"{found['rate']:.0%} ({found['low']:.0%} to {found['high']:.0%}) of {found['n']} rows"
