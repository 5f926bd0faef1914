"""`fit_guardrails`: several topics over one pass of the retain text.

Each topic gets the guardrail that `fit_guardrail` alone would give it: the same features, threshold and tensors. What
is shared is the model's work on the retain text, which is most of it: every row is run once, and every topic reads it.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.processes import summed
from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail.attach import detach_guardrail, place_guardrail
from sae_unlearn.guardrail.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.fit import fit_guardrail
from sae_unlearn.guardrail.fit_passes import rows_of
from sae_unlearn.guardrail.fit_plan import plan_fit
from sae_unlearn.guardrail.fit_steps import Fit
from sae_unlearn.guardrail.reading import read_batch
from sae_unlearn.guardrail.rows import Rows
from sae_unlearn.sae import SparseAutoencoder


_SHARED = {"threshold": "retain: threshold", "report": "retain: report"}


@as_guardrail_error()
def fit_guardrails(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sae: SparseAutoencoder,
    forget: Mapping[str, Any],
    retain: Any,
    **options: Any,
) -> PeftModel:
    """Fit a guardrail for each of several topics, and put all of them on the model.

    Args:
        model, tokenizer, sae, retain: as for `fit_guardrail`.
        forget: the text of each topic, by the name that its guardrail gets. Another topic's text is not retain text,
            so a gate may fire on it; see `sae_unlearn.evaluation.interference`.
        options: any other argument of `fit_guardrail`, for all topics alike; but for `adapter_name`.

    Returns:
        A `PeftModel` with all of them active.

    Raises:
        GuardrailError: as `fit_guardrail`, naming the topic; the model is left as it was.

    Example:

    ```python
    guarded = fit_guardrails(model, tokenizer, sae, {"biology": biology, "books": books}, retain=other)
    use_guardrails(guarded, "books")
    ```
    """
    if not isinstance(forget, Mapping) or not forget:
        raise GuardrailError("forget must be a mapping from the names of topics to their texts, with one at least.")
    if options.get("checkpoint_dir") is not None:
        raise GuardrailError("checkpoint_dir is for one topic; fit those that take long one by one.")
    if "adapter_name" in options:
        raise GuardrailError("adapter_name cannot be given: each guardrail is named after its topic.")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(fit_guardrail).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise GuardrailError(f"{unknown[0]!r} is no argument of `fit_guardrail`.")
    fits: dict[str, _TopicFit] = {}
    for name, texts in forget.items():
        with _named(name):
            given = defaults | options | {"adapter_name": name}
            fits[name] = _TopicFit(plan_fit(model, tokenizer, sae, texts, retain, **given))
    for name, fit in fits.items():
        with _named(name):
            fit.read("forget", forget[name])
    if retain is not None:
        _read_retain(list(fits.values()), retain)
    for name, fit in fits.items():
        with _named(name):
            fit.choose()
    if retain is not None:
        _share_statistics(list(fits.values()))
    artefacts = {}
    for name, fit in fits.items():
        with _named(name):
            fit.calibrate()
            artefacts[name] = fit.artefact()
    guarded, placed = model, []
    try:
        for name, artefact in artefacts.items():
            guarded = place_guardrail(guarded, artefact, name)
            placed.append(name)
    except BaseException:
        for name in placed:
            detach_guardrail(guarded, name)
        raise
    return guarded


class _TopicFit(Fit):
    """A fit whose statistics of retain rows come from a pass that others share."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shared: dict[str, Tensor] = {}

    def _statistics(self, rows: list[list[int]], title: str, moments: bool = False) -> Tensor:
        return self.shared[title] if title in self.shared else super()._statistics(rows, title, moments)


def _read_retain(fits: list[_TopicFit], retain: Any) -> None:
    rows: Rows = rows_of(fits[0].plan, "retain", retain)
    total = rows.selected_of(len(retain)) if hasattr(retain, "__len__") else None
    for fit in fits:
        fit.begin("retain", rows)
    for batch in fits[0].passes.run(rows, "retain: features", total):
        for fit in fits:
            fit.add("retain", batch)
    for fit in fits:
        fit.end("retain")


def _share_statistics(fits: list[_TopicFit]) -> None:
    for use, title in _SHARED.items():
        rows = getattr(fits[0].rows["retain"], use)
        for fit in fits:
            fit.shared[title] = torch.zeros(len(rows))
        for batch in fits[0].passes.run(rows, title, len(rows)):
            for fit in fits:
                fit.shared[title][batch.index] = read_batch(batch, fit.encoder, fit.config).statistics
        for fit in fits:
            fit.shared |= summed({title: fit.shared[title]})


@contextmanager
def _named(topic: str) -> Iterator[None]:
    """Errors inside name the topic."""
    try:
        yield
    except UnlearnError as error:
        raise GuardrailError(f"{topic}: {error}") from error
