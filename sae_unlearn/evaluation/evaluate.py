"""`evaluate`: what a model knows of what it should forget, and of what it should keep."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import gathered, process_index
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.figures import choice_figures, fact_figures, text_figures
from sae_unlearn.evaluation.metrics.choices import Choice
from sae_unlearn.evaluation.metrics.recall import Fact
from sae_unlearn.evaluation.report.figure import Figure, fingerprint
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
    """Measure a base, a guarded or a LoRA model alike. The model is left as it was.

    Facts are completed: recall of the canonical and of any accepted answer, ROUGE-L, refusals. Choices are decided by
    log-probability and, where their options are shown, by letter over orders of the options; where they are not shown,
    by TOFU's truth ratio. Texts give perplexity, and KL to the base where there is one. Where guardrails are attached,
    their fire rates are told on all of them. Every figure comes with its n and 95 % interval.

    Under `accelerate launch` or `torchrun` the batches are shared out among the processes, each of which has to call
    with the same rows and ends with the same report.

    Example:

    ```python
    before = evaluate(model, tokenizer, forget={"tofu": facts}, retain={"facts": others, "text": texts})
    guarded = attach_guardrail(model, "forget-authors")
    after = evaluate(guarded, tokenizer, forget={"tofu": facts}, retain={"facts": others, "text": texts})
    print(compare(before, after).to_markdown())
    ```

    Args:
        model: any causal language model of transformers, with or without adapters.
        forget, retain: `Fact`s, `Choice`s or texts (a `datasets.Dataset` with a text column too), or a mapping of
            names to such sets. A list may hold several kinds, which are measured apart.
        base: model that KL is measured to; None takes a `PeftModel` with its adapters disabled.
        reference: report of a model that never saw the forget set, on the same choices: adds TOFU's forget quality.
        title: of the report; None names the model.
        config: the options; None takes the defaults.
        options: any field of `EvaluationConfig` by its name, in place of its value in `config`.

    Raises:
        ValueError: nothing to measure, an empty set, two sets of one name, rows that are none of the three kinds,
            logits that are not finite (float16 overflows in some models), or processes of a launch that were given
            different rows.
    """
    given = merged(EvaluationConfig, config, options, UnlearnError)
    settings = replace(given, progress=given.progress and process_index() == 0)
    sides = {side: _sets(sets, side, given.text_column) for side, sets in (("forget", forget), ("retain", retain))}
    if not any(sides.values()):
        raise ValueError("Nothing to measure; pass facts, choices or texts as forget= or retain=.")
    _check_alike(sides)
    figures: list[Figure] = []
    notes: list[str] = []
    with evaluation_mode(model), nullcontext() if base is None else evaluation_mode(base):
        for side, sets in sides.items():
            for data, rows in sets.items():
                common = (model, tokenizer, rows, side, data, settings)
                if isinstance(rows[0], Fact):
                    figures += fact_figures(*common, notes)
                elif isinstance(rows[0], Choice):
                    figures += choice_figures(*common, reference)
                else:
                    figures += text_figures(*common, base)
    if reference is not None and not any(figure.metric == "forget_quality" for figure in figures):
        notes.append(
            "no forget quality: it is of choices under forget whose options are not shown, and there were none."
        )
    about = about_model(model) | {
        name: value for name, value in vars(settings).items() if name not in ("progress", "text_column")
    }
    if title is None:
        title = about["model"] if about["adapters"] == "none" else f"{about['model']} with {about['adapters']}"
    return Report(title, tuple(figures), about, tuple(notes))


def _sets(given: Any, side: str, text_column: str) -> dict[str, list[Any]]:
    """Named sets, each of one kind of rows."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        found: dict[str, list[Any]] = {}
        for name, rows in given.items():
            kinds = _by_kind(rows, f"{side}[{name!r}]", text_column)
            parts = {str(name) if len(kinds) == 1 else f"{name} {kind}": part for kind, part in kinds.items()}
            twice = found.keys() & parts.keys()
            if twice:
                raise ValueError(f"Two sets of {side} are called {min(twice)!r}; rename one of them.")
            found |= parts
        return found
    return _by_kind(given, side, text_column)


def _check_alike(sides: Mapping[str, Mapping[str, list[Any]]]) -> None:
    named = [[side, data, repr(row)] for side, sets in sides.items() for data, rows in sets.items() for row in rows]
    if len({*gathered(fingerprint(named))}) > 1:
        raise ValueError("The processes were given different rows; give all of them the same, in the same order.")


def _by_kind(rows: Any, name: str, text_column: str) -> dict[str, list[Any]]:
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise ValueError(
            f"{name} is a {type(rows).__name__}; pass a list of Fact, Choice or texts, or a mapping of them."
        )
    found: dict[str, list[Any]] = {}
    for row in rows:
        if isinstance(row, Mapping):
            row = row.get(text_column, row)
        kind = next((kind for of, kind in _NAMES.items() if isinstance(row, of)), None)
        if kind is None:
            columns = f" with columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else ""
            raise ValueError(
                f"{name} holds a {type(row).__name__}{columns}; expected Fact, Choice, a text, or a row with a text in "
                f"column {text_column!r}."
            )
        found.setdefault(kind, []).append(row)
    if not found:
        raise ValueError(f"{name} is empty; leave it out, or pass at least one row.")
    return found


def about_model(model: nn.Module) -> dict[str, Any]:
    """What a report says of a model: its name, its adapters, and the version of this package."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    name = Path(name).name if Path(name).is_dir() else name  # a report may be published; a user's folders may not
    adapters = getattr(model, "peft_config", {})
    kinds = [f"{name} ({getattr(c.peft_type, 'value', c.peft_type)})" for name, c in adapters.items()]
    return {"model": name, "adapters": ", ".join(kinds) or "none", "sae_unlearn": __version__}
