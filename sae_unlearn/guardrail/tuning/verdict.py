"""Verdict on a fit's calibration, in words: separation by the SAE, threshold, and next step."""

from dataclasses import dataclass
from typing import Any

from sae_unlearn.checks import real
from sae_unlearn.guardrail.fit.reconstruction import fits_layer, knows_topic, reconstruction_warning


GOOD, FAIR = 0.95, 0.85
"""AUROC from which on the SAE separates the topic well, and in part."""
LEAST_RECALL = 0.8
FEW_ROWS = 20
WEAK_DOSE, STRONG_DOSE = 0.25, 2.0
"""Norm of the edit in units of the residual stream's."""


@dataclass(frozen=True)
class Verdict:
    """A judged fit.

    Attributes:
        works: Whether nothing speaks against using it.
        lines: The judgement, one sentence or two for each question.
        step: The one next thing to do, as a sentence.
        ready: Whether that is to check it on other text, and not to change it first.
    """

    works: bool
    lines: tuple[str, ...]
    step: str
    ready: bool

    def __str__(self) -> str:
        return "\n".join([*(f"  {line}" for line in self.lines), f"  Next: {self.step}"])


def judge(calibration: dict[str, Any], where: str = "FOLDER") -> Verdict | None:
    """Judge a fit by what its calibration holds; None if nothing was measured.

    Args:
        calibration (dict[str, Any]): Of a fitted guardrail.
        where (str, *optional*, defaults to "FOLDER"): The guardrail's folder, for the commands that are named.
    """
    auroc, short = real(calibration.get("auroc")), real(calibration.get("auroc_short"))
    recall, alarms = (calibration.get(f"fire_rate_{role}") or {} for role in ("forget", "retain"))
    recall_rate, alarm_rate = real(recall.get("rate")), real(alarms.get("rate"))
    if auroc is None or recall_rate is None or alarm_rate is None:
        return None
    edit = real(calibration.get("edit_to_residual"))
    expected = 1 - (real(calibration.get("threshold_percentile")) or 95.0) / 100
    doubt = reconstruction_warning(calibration)
    lines = [] if doubt is None else [f"Reconstruction: {doubt}"]
    lines.append(_topic(auroc, doubt is not None))
    if short is not None:
        lines.append(_short(short, auroc))
    lines.append(
        f"Threshold: it fires on {recall_rate:.0%} of held-out topic rows ({_interval(recall)}) and on "
        f"{alarm_rate:.1%} of other rows ({_interval(alarms)})."
    )
    if edit is not None:
        lines.append(_dose(edit))
    false_alarms = (real(alarms.get("low")) or 0.0) > expected + 0.02
    step = _step(auroc, recall, recall_rate, false_alarms, edit, calibration, where)
    works = doubt is None and auroc >= FAIR and recall_rate >= LEAST_RECALL and not false_alarms
    ready = step is None
    step = step or f"Check it on text that had no part in the fit: `sae-unlearn check MODEL {where} ...`."
    return Verdict(works, tuple(lines), step, ready)


def _topic(auroc: float, doubted: bool) -> str:
    sae = "even so, this SAE" if doubted and auroc >= FAIR else "this SAE"
    means = f"a topic row scores above another row in {auroc:.0%} of pairs (AUROC {auroc:.3f})"
    if auroc >= GOOD:
        return f"Topic: {sae} tells it well; {means}."
    if auroc >= FAIR:
        return f"Topic: {sae} tells it in part; {means}."
    return f"Topic: {sae} hardly tells it; {means}. No threshold will do."


def _short(short: float, auroc: float) -> str:
    words = "badly" if short < FAIR else "as well" if short >= min(GOOD, auroc - 0.03) else "less well"
    return f"Short text, a row's first words: separated {words} (AUROC {short:.3f})."


def _dose(edit: float) -> str:
    words = "weak" if edit < WEAK_DOSE else "strong: fluent refusals may need less" if edit > STRONG_DOSE else "usual"
    return f"Dose: {words}; the edit has {edit:.2f} of the residual stream's norm. `evaluate` measures what it does."


def _interval(rate: dict[str, Any]) -> str:
    return f"95 % interval {real(rate.get('low')) or 0:.0%} to {real(rate.get('high')) or 0:.0%}, n {rate.get('n')}"


def _step(
    auroc: float,
    recall: dict[str, Any],
    recall_rate: float,
    false_alarms: bool,
    edit: float | None,
    calibration: dict[str, Any],
    where: str,
) -> str | None:
    """The one thing to change, as a sentence; None if nothing has to be."""
    if not fits_layer(calibration):
        return (
            "Take an SAE of this model and layer: `sae-unlearn saes MODEL` lists the published ones, and `sae-unlearn "
            "train-sae` trains one."
        )
    if (recall.get("n") or 0) < FEW_ROWS:
        return f"Give more topic text: {recall.get('n')} held-out rows say little; 100 paragraphs are a good start."
    if auroc < FAIR:
        return (
            "Try another layer (`sae-unlearn scout` measures all of them), or an SAE trained on your texts "
            "(`sae-unlearn train-sae`)."
        )
    if not knows_topic(calibration):
        return "Train an SAE on texts that hold the topic (`sae-unlearn train-sae`), and fit again."
    if recall_rate < LEAST_RECALL:
        return _for_recall(calibration, where)
    if false_alarms:
        return f"Give more retain text that is near the topic, or ask for fewer alarms: `sae-unlearn tune {where} ...`."
    if edit is not None and edit < WEAK_DOSE:
        return "Fit again with a larger --clamp-scale: the edit may be too weak to be noticed."
    return None


def _for_recall(calibration: dict[str, Any], where: str) -> str:
    """The smallest share of false alarms at which the recall is reached, by the stored rows."""
    forget, retain = (calibration.get(f"statistic_{role}") or [] for role in ("forget", "retain"))
    ordered = sorted((value for value in forget if real(value) is not None), reverse=True)
    if not ordered or not retain:
        return "Give more topic text in the format of deployment, or lower --threshold-percentile."
    least = ordered[min(len(ordered) - 1, int(LEAST_RECALL * len(ordered)))]
    cost = sum(value >= least for value in retain) / len(retain)
    if cost > 0.2:
        return (
            f"Firing on {LEAST_RECALL:.0%} of the topic would also fire on {cost:.0%} of other text: try another layer "
            "(`sae-unlearn scout`) or more topic text."
        )
    return (
        f"Lower the threshold, which needs no refit: `sae-unlearn tune {where} --target-recall {LEAST_RECALL}` fires "
        f"on about {cost:.0%} of other rows."
    )
