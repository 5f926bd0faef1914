"""Measure what a model knows of data to forget and of data to retain."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import gathered, process_index
from sae_unlearn.backbone.private_api import loaded_from
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.figures import choice_figures, fact_figures, text_figures
from sae_unlearn.evaluation.measurement import Measurement
from sae_unlearn.evaluation.metrics.choices import Choice
from sae_unlearn.evaluation.metrics.recall import Fact
from sae_unlearn.evaluation.report.figure import Figure, rows_digest
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.options.evaluation import EvaluationConfig
from sae_unlearn.options.field import merged, takes_options
from sae_unlearn.version import __version__


_NAMES = {Fact: "facts", Choice: "choices", str: "texts"}


@takes_options(EvaluationConfig)
@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Any = None,
    retain: Any = None,
    *,
    base: nn.Module | None = None,
    reference: Report | None = None,
    title: str | None = None,
    config: EvaluationConfig | None = None,
    **options: Any,
) -> Report:
    """Measure a bare, a guarded or a LoRA model on facts, choices and texts. The model is left as it was.

    Facts are completed: recall of the canonical and of any accepted answer, ROUGE-L, refusals. Choices are decided by
    log-probability. If their options are shown, letters over orders of the options decide too; if not, TOFU's truth
    ratio is measured. Texts give perplexity, and KL to the base if there is one. Attached guardrails add their fire
    rates. Every figure has its n and 95 % interval.

    Under `accelerate launch` or `torchrun` the batches are shared among the processes. Every process must call with the
    same rows, and receives the same report.

    Example:

    ```python
    before = evaluate(model, tokenizer, forget={"tofu": facts}, retain={"facts": others, "text": texts})
    guarded = attach_guardrail(model, "forget-authors")
    after = evaluate(guarded, tokenizer, forget={"tofu": facts}, retain={"facts": others, "text": texts})
    print(compare(before, after).to_markdown())
    ```

    Args:
        model (nn.Module): Any causal language model of transformers, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget, retain (list or mapping, *optional*): `Fact`s, `Choice`s or texts, or a `datasets.Dataset` with a text
            column, or a mapping of names to such sets. Different kinds in one list are measured separately.
        base (nn.Module, *optional*): Reference of the KL. None disables the adapters of a `PeftModel`.
        reference (Report, *optional*): Report of a model that never saw the forget set, on the same choices. It adds
            TOFU's forget quality.
        title (str, *optional*): Title of the report. None names the model.
        config (EvaluationConfig, *optional*): The options. None takes the defaults.
        options: Fields of `EvaluationConfig` by name, which override `config`.

    Returns:
        Report: The figures of all sets.

    Raises:
        UnlearnError: If all sets are missing or one is empty, two sets have one name, a row is of another kind, the
            logits are not finite (float16 overflows in some models), or the processes of a launch received different
            rows.
    """
    given = merged(EvaluationConfig, config, options, UnlearnError)
    settings = replace(given, progress=given.progress and process_index() == 0)
    sides = {side: _sets(sets, side, given.text_column) for side, sets in (("forget", forget), ("retain", retain))}
    if not any(sides.values()):
        raise UnlearnError("forget=None, retain=None: expected facts, choices or texts. Pass at least one of the two.")
    _check_alike(sides)
    it = Measurement(model=model, tokenizer=tokenizer, settings=settings, base=base)
    figures: list[Figure] = []
    with evaluation_mode(model), nullcontext() if base is None else evaluation_mode(base):
        for side, sets in sides.items():
            for data, rows in sets.items():
                if isinstance(rows[0], Fact):
                    figures += fact_figures(it, rows, side, data)
                elif isinstance(rows[0], Choice):
                    figures += choice_figures(it, rows, side, data, settings.orders, reference)
                else:
                    figures += text_figures(it, rows, side, data)
    if reference is not None and not any(figure.metric == "forget_quality" for figure in figures):
        it.notes.append("reference: skipped forget quality. It needs choices in forget= whose options are not shown.")
    about = about_model(model) | {
        name: value for name, value in vars(settings).items() if name not in ("progress", "text_column")
    }
    if title is None:
        title = about["model"] if about["adapters"] == "none" else f"{about['model']} with {about['adapters']}"
    return Report(title, tuple(figures), about, tuple(it.notes))


def _sets(given: Any, side: str, text_column: str) -> dict[str, list[Any]]:
    """Named sets with rows of one kind each."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        found: dict[str, list[Any]] = {}
        for name, rows in given.items():
            kinds = _by_kind(rows, f"{side}[{name!r}]", text_column)
            parts = {str(name) if len(kinds) == 1 else f"{name} {kind}": part for kind, part in kinds.items()}
            twice = found.keys() & parts.keys()
            if twice:
                raise UnlearnError(
                    f"{side}={min(twice)!r}: expected different names of the sets, got it twice. Rename one of them."
                )
            found |= parts
        return found
    return _by_kind(given, side, text_column)


def _check_alike(sides: Mapping[str, Mapping[str, list[Any]]]) -> None:
    named = [[side, data, repr(row)] for side, sets in sides.items() for data, rows in sets.items() for row in rows]
    if len({*gathered(rows_digest(named))}) > 1:
        raise UnlearnError(
            "forget, retain: expected the same rows in every process, got different ones. "
            "Pass the same rows in one order."
        )


def _by_kind(rows: Any, name: str, text_column: str) -> dict[str, list[Any]]:
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise UnlearnError(
            f"{name}: expected a list of Fact, Choice or texts, or a mapping of them, got {type(rows).__name__}."
        )
    found: dict[str, list[Any]] = {}
    for row in rows:
        if isinstance(row, Mapping):
            row = row.get(text_column, row)
        kind = next((kind for of, kind in _NAMES.items() if isinstance(row, of)), None)
        if kind is None:
            columns = f" with columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else ""
            raise UnlearnError(
                f"{name}: expected Fact, Choice, text, or a row with a text in column {text_column!r}, "
                f"got {type(row).__name__}{columns}."
            )
        found.setdefault(kind, []).append(row)
    if not found:
        raise UnlearnError(f"{name}=[]: expected at least one row. Pass rows, or omit the set.")
    return found


def about_model(model: nn.Module) -> dict[str, Any]:
    """Return the model's name, its adapters and the version of this package, for a report."""
    config = getattr(model, "config", None)
    name = loaded_from(config) or type(model).__name__
    name = Path(name).name if Path(name).is_dir() else name  # a report may be published, the user's folders may not
    adapters = getattr(model, "peft_config", {})
    kinds = [f"{name} ({getattr(c.peft_type, 'value', c.peft_type)})" for name, c in adapters.items()]
    return {"model": name, "adapters": ", ".join(kinds) or "none", "sae_unlearn": __version__}
