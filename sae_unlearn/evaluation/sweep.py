"""What another dose, or another threshold, would do: the change of the loss on forget and on retain text.

With `loss_i(none)` the loss of row i without the guardrail, in nats per token, the change at dose `m` (the clamp values
times m) and threshold `tau` is

    change_i(m, tau) = loss_i(m, tau) - loss_i(none),        0 for rows on which the gate does not fire

Under `gate_scope="sequence"` a row is judged whole, so its loss is one of two numbers, and the curve over thresholds
costs one pass with the gate open. Under `"prefix"` every threshold is a pass of its own over the rows that fire.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.residuals import evaluation_mode
from sae_unlearn.evaluation.estimate import Estimate
from sae_unlearn.evaluation.loss import batch_losses
from sae_unlearn.evaluation.predicted_tokens import predicted_rows
from sae_unlearn.evaluation.the_guardrail import alone_and_clamping, clamp_of, the_guardrail
from sae_unlearn.guardrail import GuardrailError
from sae_unlearn.guardrail.attach import bare_model
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.reading import documents_as_fitted, read_batch
from sae_unlearn.guardrail.unguarded import guards_off, unguarded_residuals


DOSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
ALL_FIRE = -1.0  # a threshold that every statistic exceeds
_STEPS = {"sequence": 24, "prefix": 6}


@dataclass(frozen=True)
class SweepPoint:
    """The guardrail at one setting.

    Attributes:
        setting: the threshold, or the dose in multiples of the guardrail's own; at 0 the features are set to 0.
        change: by role, the mean change of the loss over texts, nats per token.
        fires: by role, the share of rows on which the gate fires.
    """

    setting: float
    change: dict[str, Estimate]
    fires: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """What `sweep_guardrail` measured.

    Attributes:
        doses: at the guardrail's threshold.
        thresholds: at the guardrail's dose.
        base_loss: by role, the mean loss without it, nats per token.
        guardrail: layer, features and threshold of what was swept.
    """

    doses: tuple[SweepPoint, ...]
    thresholds: tuple[SweepPoint, ...]
    base_loss: dict[str, float]
    guardrail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON."""
        target = Path(path)
        target.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sweep":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            doses, thresholds = (tuple(map(_point, stored[name])) for name in ("doses", "thresholds"))
            base = {str(role): float(loss) for role, loss in stored["base_loss"].items()}
            return cls(doses, thresholds, base, dict(stored["guardrail"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no sweep that this package wrote: {error!r}.") from error

    def check_is_of(self, config: SAEGuardrailConfig) -> None:
        """Raise unless it is a sweep of this guardrail.

        Raises:
            GuardrailError: naming what differs.
        """
        mine = about(config)
        wrong = [name for name in mine if self.guardrail.get(name) != mine[name]]
        if wrong:
            raise GuardrailError(
                f"The sweep is of another guardrail: {wrong[0]} is {self.guardrail.get(wrong[0])} there and "
                f"{mine[wrong[0]]} here; measure it again."
            )


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
    """Measure the loss on texts at other doses and thresholds of a guardrail. It clamps, whatever its action; other
    guardrails are out of force, and other adapters stay as they are. Afterwards all is as before.

    The cost is two forward passes over all rows, and one for each dose over the rows on which the gate fires.

    Args:
        model: a model with the guardrail.
        forget, retain: texts of the topic, and others, held out from fitting. One of the two may be left out. They are
            read as the fit read its own.
        adapter_name: which guardrail; None takes the only one.
        doses: multiples of the guardrail's clamp values; 1 is measured anyway.
        thresholds: None spreads some from 0 to the largest statistic; the guardrail's own is measured anyway.
        text_column: column of datasets and mappings that holds the text.
        batch_size: rows per forward pass; the result does not depend on it, up to rounding.
        progress: show progress bars.

    Raises:
        GuardrailError: there is no such guardrail, no text, or an empty corpus.
        ValueError: a dose is negative, which would amplify the topic.
    """
    if any(dose < 0 for dose in doses):
        raise ValueError(f"doses={list(doses)}; a negative one would amplify the topic.")
    name, layer = the_guardrail(model, adapter_name)
    config = layer.guard_config[name]
    corpora = {role: corpus for role, corpus in (("forget", forget), ("retain", retain)) if corpus is not None}
    if not corpora:
        raise GuardrailError("There is no text to measure on; give `forget`, `retain`, or both.")
    sides = {
        role: _Side(model, tokenizer, name, role, corpus, text_column, batch_size, progress)
        for role, corpus in corpora.items()
    }
    own = config.tau
    highest = max(own, *(float(side.statistics.max()) for side in sides.values()))
    asked = torch.linspace(0, highest, _STEPS[config.gate_scope]).tolist() if thresholds is None else thresholds
    with evaluation_mode(model), alone_and_clamping(model, name):
        by_threshold = [
            _swept(tau, {role: side.change(1.0, tau) for role, side in sides.items()}, tau, sides)
            for tau in sorted({own, *map(float, asked)})
        ]
        by_dose = [
            _swept(dose, {role: side.change(dose, own) for role, side in sides.items()}, own, sides)
            for dose in sorted({1.0, *map(float, doses)})
        ]
    base = {role: float(Estimate.mean(side.base, subjects=side.subjects).value) for role, side in sides.items()}
    return Sweep(tuple(by_dose), tuple(by_threshold), base, about(config))


def about(config: SAEGuardrailConfig) -> dict[str, Any]:
    """What a sweep knows its guardrail by again."""
    return {"layer": config.layer, "feature_ids": config.feature_ids, "threshold": config.threshold}


class _Side:
    """The rows of one corpus, their statistics, and their losses without the guardrail and with it."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        role: str,
        corpus: Iterable[Any],
        text_column: str,
        batch_size: int,
        progress: bool,
    ) -> None:
        _, self._layer = the_guardrail(model, name)
        self._model, self._name, self._role, self._progress = model, name, role, progress
        self._config: SAEGuardrailConfig = self._layer.guard_config[name]
        # where padding counts, a row is judged as it is alone
        self._size = 1 if self._config.counting == "columns" else batch_size
        self._special = tokenizer.all_special_ids
        documents = documents_as_fitted(corpus, tokenizer, role, self._config, text_column)
        kept = [
            (number, row)
            for number, document in enumerate(documents)
            for row in document.rows
            if any(next(predicted_rows([row], self._special, 1)).counts)
        ]
        if not kept:
            raise GuardrailError(f"The {role} corpus has no token to predict; give longer texts.")
        self.subjects, self.rows = [number for number, _ in kept], [row for _, row in kept]
        self.statistics = torch.zeros(len(self.rows))
        encoder = self._layer.sae_guardrail_encoder[name]
        for batch in unguarded_residuals(bare_model(model), self.rows, self._config.layer, batch_size):
            self.statistics[batch.index] = read_batch(batch, encoder, self._config).statistics
        with evaluation_mode(model), guards_off(model):
            self.base = self._losses(torch.arange(len(self.rows)), "without")
        self._open: Tensor | None = None

    def fires(self, tau: float) -> float:
        """Share of rows on which the gate fires."""
        return float((self.statistics > tau).double().mean())

    def change(self, dose: float, tau: float) -> Tensor:
        """`[n]`, the change of the loss of each row."""
        which, change = (self.statistics > tau).nonzero().flatten(), torch.zeros_like(self.base)
        whole = self._config.gate_scope == "sequence"
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
        """Another dose and threshold, until the end of the block."""
        clamp, own = clamp_of(self._layer, self._name), self._config.threshold
        before = clamp.detach().clone()
        try:
            with torch.no_grad():
                clamp.copy_(before * dose)
            self._config.threshold = tau
            yield
        finally:
            with torch.no_grad():
                clamp.copy_(before)
            self._config.threshold = own

    def _losses(self, which: Tensor, title: str, dose: float = 1.0, tau: float = ALL_FIRE) -> Tensor:
        """`[len(which)]` float64, at a dose and a threshold."""
        losses = torch.zeros(len(which), dtype=torch.float64)
        rows = [self.rows[i] for i in which.tolist()]
        title, hidden = f"{self._role}: {title}", not self._progress or not rows
        with self._set(dose, tau), tqdm(total=len(rows), desc=title, unit="row", disable=hidden) as bar:
            for batch in predicted_rows(rows, self._special, self._size):
                losses[batch.index] = batch_losses(self._model, batch)
                bar.update(len(batch.index))
        return losses


def _swept(setting: float, changes: dict[str, Tensor], tau: float, sides: dict[str, _Side]) -> SweepPoint:
    means = {role: Estimate.mean(change, subjects=sides[role].subjects) for role, change in changes.items()}
    return SweepPoint(setting, means, {role: side.fires(tau) for role, side in sides.items()})


def _point(stored: dict[str, Any]) -> SweepPoint:
    change = {str(role): Estimate(**found) for role, found in stored["change"].items()}
    return SweepPoint(float(stored["setting"]), change, {str(r): float(v) for r, v in stored["fires"].items()})
