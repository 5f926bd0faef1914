"""Sweep over doses and thresholds: the change of the loss on forget and on retain text.

With `loss_i(none)` the loss of row i without the guardrail, in nats per token, the change at dose `m` (the clamp values
times m) and threshold `tau` is

    change_i(m, tau) = loss_i(m, tau) - loss_i(none),        0 for rows on which the gate does not fire

Under `gate_scope="sequence"` a row is judged as a whole, so its loss is one of two numbers, and the curve over
thresholds costs one pass with the gate open. Under `"prefix"` every threshold is a pass over the rows that fire.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.adapters_off import guards_off
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.checks import check_is, check_number
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.explorer.texts import GuardedTexts, alone_and_clamping, clamp_of
from sae_unlearn.evaluation.metrics.text import batch_losses, predicted_rows
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.files import read_as
from sae_unlearn.files.atomic import write_whole
from sae_unlearn.files.untrusted import as_path
from sae_unlearn.guardrail import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig


@dataclass(frozen=True)
class SweepPoint:
    """The guardrail at one setting.

    Attributes:
        setting (float): The threshold, or the dose in multiples of the guardrail's own. At dose 0 the features are set
            to 0.
        change (mapping): Mean change of the loss over texts by role, in nats per token.
        fires (mapping): Share of rows on which the gate fires, by role.
    """

    setting: float
    change: dict[str, Estimate]
    fires: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """Result of `sweep_guardrail`.

    Attributes:
        doses (tuple of SweepPoint): At the guardrail's threshold.
        thresholds (tuple of SweepPoint): At the guardrail's dose.
        base_loss (mapping): Mean loss without the guardrail by role, in nats per token.
        guardrail (mapping): Layer, features and threshold of the guardrail.
    """

    doses: tuple[SweepPoint, ...]
    thresholds: tuple[SweepPoint, ...]
    base_loss: dict[str, float]
    guardrail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as a mapping that JSON can hold."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the sweep as JSON and return the path.

        Args:
            path (str or PathLike): The file.

        Raises:
            UnlearnError: If it cannot be written. An earlier file is then unchanged.
        """
        target = as_path(path)
        write_whole(target, json.dumps(self.to_dict(), indent=1) + "\n")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sweep":
        """Load a sweep that `save` wrote.

        Args:
            path (str or PathLike): The JSON file.

        Raises:
            FileNotFoundError: If the file does not exist.
            UnlearnError: If it is not a sweep.
        """
        path = as_path(path)
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UnlearnError(f"{path}: expected a sweep that this package wrote, got {error}") from error

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Sweep":
        """Return the sweep from a mapping that `to_dict` made.

        Args:
            stored (mapping): From `to_dict`.

        Raises:
            UnlearnError: If a field is missing or of another type; the message names it.
        """
        with read_as("sweep"):
            doses, thresholds = (tuple(map(_stored_point, stored[name])) for name in ("doses", "thresholds"))
            base = {str(role): float(loss) for role, loss in stored["base_loss"].items()}
            return cls(doses, thresholds, base, dict(stored["guardrail"]))

    def check_is_of(self, config: SAEGuardrailConfig) -> None:
        """Raise unless the sweep is of this guardrail.

        Args:
            config (SAEGuardrailConfig): Config of the guardrail.

        Raises:
            GuardrailError: If they differ. The message names the field.
        """
        check_is(config, SAEGuardrailConfig, "config")
        mine = about(config)
        wrong = [name for name in mine if self.guardrail.get(name) != mine[name]]
        if wrong:
            raise GuardrailError(
                f"sweep.{wrong[0]}={self.guardrail.get(wrong[0])}: expected {mine[wrong[0]]}, as in this guardrail. "
                "Measure it again."
            )


def about(config: SAEGuardrailConfig) -> dict[str, Any]:
    """Return the fields that identify the guardrail of a sweep."""
    return {"layer": config.layer, "feature_ids": list(config.feature_ids or ()) or None, "threshold": config.threshold}


def _stored_point(stored: dict[str, Any]) -> SweepPoint:
    change = {str(role): Estimate(**found) for role, found in stored["change"].items()}
    return SweepPoint(float(stored["setting"]), change, {str(r): float(v) for r, v in stored["fires"].items()})


DOSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
ALL_FIRE = -1.0  # below every statistic
_STEPS = {"sequence": 24, "prefix": 6}


def sweep_guardrail(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Iterable[Any] | None = None,
    retain: Iterable[Any] | None = None,
    *,
    adapter_name: str | None = None,
    doses: Sequence[float] = DOSES,
    thresholds: Sequence[float] | None = None,
    text_column: str = "text",
    batch_size: int = 4,
    progress: bool = True,
) -> Sweep:
    """Measure the loss on texts at other doses and thresholds of a guardrail.

    The guardrail clamps, whatever its action. Other guardrails are disabled, and other adapters stay as they are. The
    model is left as it was. The cost is two forward passes over all rows, one up to the guarded layer, and one for each
    dose over the rows on which the gate fires.

    Args:
        model (nn.Module): A model with the guardrail.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget, retain (iterable, *optional*): Texts of the topic and other texts, held out from fitting. At least one
            of the two is needed. They are read as in the fit.
        adapter_name (str, *optional*): Name of the guardrail. None takes the only one.
        doses (sequence of float, *optional*, defaults to (0, 0.25, 0.5, 1, 2, 4)): Multiples of the guardrail's clamp
            values. 1 is always measured.
        thresholds (sequence of float, *optional*): None spreads some from 0 to the largest statistic. The guardrail's
            own is always measured.
        text_column (str, *optional*, defaults to "text"): Column or key of the text in datasets and mappings.
        batch_size (int, *optional*, defaults to 4): Rows per forward pass. It changes only rounding.
        progress (bool, *optional*, defaults to True): Show progress bars.

    Returns:
        Sweep: The losses.

    Raises:
        GuardrailError: If the model has no such guardrail, no texts are given, or a corpus is empty.
        UnlearnError: If a dose is negative, which would amplify the topic.
    """
    texts = GuardedTexts(model, tokenizer, forget, retain, adapter_name, text_column, batch_size, progress)
    return swept(texts, doses, thresholds)


def swept(texts: GuardedTexts, doses: Sequence[float] = DOSES, thresholds: Sequence[float] | None = None) -> Sweep:
    """Return the sweep of texts that can also be used for other measurements."""
    for dose in doses:
        check_number("doses", dose, 0, fix="A negative dose would amplify the topic.")
    for threshold in () if thresholds is None else thresholds:
        check_number("thresholds", threshold)
    config, own = texts.config, texts.config.tau
    sides = {role: _Side(texts, role) for role in texts.documents}
    highest = max(own, *(float(side.statistics.max()) for side in sides.values()))
    asked = torch.linspace(0, highest, _STEPS[config.gate_scope]).tolist() if thresholds is None else thresholds
    with evaluation_mode(texts.model), alone_and_clamping(texts.model, texts.name):
        by_threshold = [_point(tau, sides, 1.0, tau) for tau in sorted({own, *map(float, asked)})]
        by_dose = [_point(dose, sides, dose, own) for dose in sorted({1.0, *map(float, doses)})]
    base = {role: float(Estimate.mean(side.base, subjects=side.subjects).value) for role, side in sides.items()}
    return Sweep(tuple(by_dose), tuple(by_threshold), base, about(config))


class _Side:
    """The rows of one role, their statistics, and their losses without the guardrail and with it."""

    def __init__(self, texts: GuardedTexts, role: str) -> None:
        self._texts, self._role = texts, role
        # if padding counts, each row is judged alone
        self._size = 1 if texts.config.tokens.counting == "columns" else texts.batch_size
        self._special = texts.tokenizer.all_special_ids
        rows = texts.rows(role)
        kept = [i for i, (_, row) in enumerate(rows) if any(next(predicted_rows([row], self._special, 1)).counts)]
        if not kept:
            raise GuardrailError(f"{role}: expected texts with a token to predict. Pass longer texts.")
        self.subjects, self.rows = [rows[i][0] for i in kept], [rows[i][1] for i in kept]
        self.statistics = texts.statistics(role)[kept]
        with evaluation_mode(texts.model), guards_off(texts.model):
            self.base = self._losses(torch.arange(len(self.rows)), "without")
        self._open: Tensor | None = None

    def fires(self, tau: float) -> float:
        """Return the share of rows on which the gate fires."""
        return float((self.statistics > tau).double().mean())

    def change(self, dose: float, tau: float) -> Tensor:
        """Return the change of the loss of each row, `[n]`."""
        which, change = (self.statistics > tau).nonzero().flatten(), torch.zeros_like(self.base)
        whole = self._texts.config.gate_scope == "sequence"
        if whole and dose == 1.0:
            if self._open is None:
                self._open = self._losses(torch.arange(len(self.rows)), "gate open", 1.0, ALL_FIRE)
            found = self._open[which]
        else:
            title = f"dose {dose:g}" if whole else f"dose {dose:g}, threshold {tau:.3g}"
            found = self._losses(which, title, dose, ALL_FIRE if whole else tau)
        change[which] = found - self.base[which]
        return change

    @contextmanager
    def _set(self, dose: float, tau: float) -> Iterator[None]:
        """Set another dose and threshold inside the `with` block."""
        config, clamp = self._texts.config, clamp_of(self._texts.layer, self._texts.name)
        own = config.threshold
        before = clamp.detach().clone()
        try:
            with torch.no_grad():
                clamp.copy_(before * dose)
            config.threshold = tau
            yield
        finally:
            with torch.no_grad():
                clamp.copy_(before)
            config.threshold = own

    def _losses(self, which: Tensor, title: str, dose: float = 1.0, tau: float = ALL_FIRE) -> Tensor:
        """Losses of the rows `which` at a dose and a threshold, `[len(which)]` float64."""
        losses = torch.zeros(len(which), dtype=torch.float64)
        rows = [self.rows[i] for i in which.tolist()]
        title, hidden = f"{self._role}: {title}", not self._texts.progress or not rows
        with self._set(dose, tau), tqdm(total=len(rows), desc=title, unit="row", disable=hidden) as bar:
            for batch in predicted_rows(rows, self._special, self._size):
                losses[batch.index] = batch_losses(self._texts.model, batch)
                bar.update(len(batch.index))
        return losses


def _point(setting: float, sides: dict[str, _Side], dose: float, tau: float) -> SweepPoint:
    """All sides at a dose and a threshold, one of which is the setting."""
    change = {role: Estimate.mean(side.change(dose, tau), subjects=side.subjects) for role, side in sides.items()}
    return SweepPoint(setting, change, {role: side.fires(tau) for role, side in sides.items()})
