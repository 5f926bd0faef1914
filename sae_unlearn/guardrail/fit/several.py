"""`fit_guardrails`: fits of several topics over one pass of the retain text.

Each topic gets the guardrail of `fit_guardrail`: the same features, threshold and tensors. The topics share the forward
passes on the retain text, most of the work: every row is run once, and every topic reads it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import GuardrailError, UnlearnError, as_guardrail_error
from sae_unlearn.guardrail.fit.checkpoint import FitCheckpoint, Stateful
from sae_unlearn.guardrail.fit.fit import place_fitted
from sae_unlearn.guardrail.fit.options import plan_fit
from sae_unlearn.guardrail.fit.passes import FitPasses, Rows, rows_of, settings_of
from sae_unlearn.guardrail.fit.row_statistics import RowStatistics
from sae_unlearn.guardrail.fit.steps import Fit
from sae_unlearn.guardrail.fit.topk_approximation import with_rule_for
from sae_unlearn.options.field import merged, takes_options
from sae_unlearn.options.fit import GuardrailFitConfig
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.choice import AUTO, sae_for


@takes_options(GuardrailFitConfig)
@as_guardrail_error()
def fit_guardrails(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sae: SparseAutoencoder | str,
    forget: Mapping[str, Any],
    retain: Any,
    *,
    config: GuardrailFitConfig | None = None,
    **options: Any,
) -> PeftModel:
    """Fit a guardrail for each of several topics, and attach all of them to the model.

    Args:
        model (nn.Module): As for `fit_guardrail`.
        tokenizer (PreTrainedTokenizerBase or None): As for `fit_guardrail`.
        sae (SparseAutoencoder or str): As for `fit_guardrail`.
        forget (Mapping): The text of each topic, by the name that its guardrail gets. The text of another topic is not
            retain text, so a gate may fire on it; see `sae_unlearn.evaluation.interference`.
        retain (Any): As for `fit_guardrail`; None if nothing is measured on it.
        config (GuardrailFitConfig, *optional*): The options for all topics; the defaults without one.
        **options (Any): Any field of `GuardrailFitConfig` by its name, except `adapter_name`. Each topic has a folder
            in `checkpoint_dir`, and so have the shared passes.

    Returns:
        `PeftModel`: With all of them active.

    Raises:
        GuardrailError: As for `fit_guardrail`, with the topic. The model is unchanged.

    Example:

    ```python
    guarded = fit_guardrails(model, tokenizer, sae, {"biology": biology, "books": books}, retain=other)
    enable_guardrails(guarded, "books")
    ```
    """
    if not isinstance(forget, Mapping) or not forget:
        raise GuardrailError("forget: expected a mapping from names of topics to their texts, with at least one.")
    given = merged(GuardrailFitConfig, config, options, GuardrailError)
    if given.adapter_name is not None:
        raise GuardrailError(
            f"adapter_name={given.adapter_name!r}: expected None, since each guardrail has the name of its topic."
        )
    chosen = sae_for(sae, model, given.layer)
    if isinstance(sae, str) and sae == AUTO:
        given = with_rule_for(given, chosen)
    folder = None if given.checkpoint_dir is None else Path(given.checkpoint_dir)
    fits: dict[str, Fit] = {}
    for name, texts in forget.items():
        with _named(name):
            own = replace(given, adapter_name=name)
            if folder is not None:
                own.checkpoint_dir = str(folder / f"topic-{len(fits)}")
            fits[name] = Fit(plan_fit(model, tokenizer, chosen, texts, retain, own))
    for name, fit in fits.items():
        with _named(name):
            fit.corpora.read("forget", forget[name])
    shared = _SharedPasses(list(fits.values()), folder)
    if retain is not None:
        _read_retain(shared, retain)
    for name, fit in fits.items():
        with _named(name):
            fit.choose()
    if retain is not None:
        _share_statistics(shared)
    artefacts = {}
    for name, fit in fits.items():
        with _named(name):
            fit.calibrate()
            artefacts[name] = fit.artefact()
    return place_fitted(model, artefacts, [shared, *(fit.passes for fit in fits.values())])


class _SharedPasses(FitPasses):
    """The passes over retain text, which all topics read."""

    def __init__(self, fits: list[Fit], folder: Path | None) -> None:
        super().__init__(fits[0].plan._replace(checkpoint_dir=None))
        self.fits = fits
        if folder is not None:  # it depends on the topics' settings, and on their texts, which were read above
            settings = {
                fit.plan.name: settings_of(fit.plan)
                | {"forget": fit.rows["forget"].digest.hexdigest() if "forget" in fit.rows else None}
                for fit in fits
            }
            self.checkpoint = FitCheckpoint(folder / "retain", settings)

    def standing(self) -> Stateful:
        return _Together([fit.outliers for fit in self.fits])

    def is_shared_out(self) -> bool:
        return all(fit.passes.is_shared_out() for fit in self.fits)


class _Together:
    """Several `Stateful` parts as one."""

    def __init__(self, parts: Sequence[Stateful]) -> None:
        self._parts = parts

    def state(self) -> dict[str, Tensor]:
        return {f"{i} {name}": t for i, part in enumerate(self._parts) for name, t in part.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for i, part in enumerate(self._parts):
            start = f"{i} "
            part.restore({name.removeprefix(start): t for name, t in state.items() if name.startswith(start)})


def _read_retain(shared: _SharedPasses, retain: Any) -> None:
    fits = shared.fits
    rows: Rows = rows_of(fits[0].plan, "retain", retain)
    total = rows.selected_of(len(retain)) if hasattr(retain, "__len__") else None
    for fit in fits:
        fit.corpora.begin("retain", rows)
    kinds = fits[0].corpora.parts("retain")
    parts = {kind: _Together([cast(Stateful, fit.corpora.parts("retain")[kind]) for fit in fits]) for kind in kinds}
    for batch in shared.run(rows, "retain: features", total, parts):
        for fit in fits:
            fit.corpora.add("retain", batch)
    for fit in fits:
        fit.corpora.end("retain")


def _share_statistics(shared: _SharedPasses) -> None:
    fits = shared.fits
    held_out = {"retain: threshold": fits[0].threshold_rows(), "retain: report": fits[0].rows["retain"].report}
    for title, rows in held_out.items():
        for fit in fits:
            fit.shared[title] = RowStatistics(len(rows))
        parts = {fit.plan.name: fit.shared[title] for fit in fits}
        for batch in shared.run(rows, title, len(rows), parts):
            for fit in fits:
                fit.shared[title].add(batch, fit.encoder, fit.config)
        for fit in fits:
            fit.shared[title].share()


@contextmanager
def _named(topic: str) -> Iterator[None]:
    """Add the topic to each error of the block."""
    try:
        yield
    except UnlearnError as error:
        raise GuardrailError(f"{topic}: {error}") from error
