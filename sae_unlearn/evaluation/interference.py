"""Interference of guardrails: whose texts each gate fires on, and the loss by their edits.

For sets `a` and `b` with texts `T_b`, and the loss in nats per token,

    fires:a on b       share of T_b on which the gate of a fires
    loss a on b        mean over T_b of  loss(a alone) - loss(none)
    loss together on b mean over T_b of  loss(all) - loss(none)
    interference on b  mean over T_b of  loss(all) - loss(b alone)

and on the retain texts the same without the last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.firing import row_firings
from sae_unlearn.evaluation.metrics.text import row_losses
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, rows_digest
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.guardrail import GuardrailError, enable_guardrails, list_guardrails
from sae_unlearn.options.evaluation import MeasurementConfig


TOGETHER = "together"
RETAIN = "retain"


def interference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[str] | None = None,
    *,
    batch_size: int = MeasurementConfig.batch_size,
    max_length: int = MeasurementConfig.max_length,
    progress: bool = True,
) -> Report:
    """Measure every gate on every set's texts, and every edit alone and all together.

    Every text is run once for each guardrail, once with all of them, and once with none.

    Args:
        model (nn.Module): A model with guardrails.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget (mapping): Held-out texts by the name of the guardrail whose topic they are.
        retain (sequence of str, *optional*): Other texts.
        batch_size (int, *optional*, defaults to 8): Texts per forward pass.
        max_length (int, *optional*, defaults to 512): Tokens of a text at most; longer ones are cut.
        progress (bool, *optional*, defaults to True): Show progress bars.

    Returns:
        Report: Figures `fires:<name>`, `loss:<name>`, `loss:together` and `interference`, with the set of the texts as
        their data. The guardrails that were enabled are enabled again.

    Raises:
        GuardrailError: If the model has no guardrail of a name in `forget`.
        UnlearnError: If a set has no texts.
    """
    there = list_guardrails(model)
    absent = [name for name in forget if name not in {one.name for one in there}]
    if absent or not forget:
        missing, names = absent[0] if absent else None, sorted(one.name for one in there)
        raise GuardrailError(f"forget={missing!r}: expected the name of a guardrail on the model, one of {names}.")
    texts = {("forget", name): list(rows) for name, rows in forget.items()}
    if retain is not None:
        texts["retain", RETAIN] = list(retain)
    empty = [side if side == RETAIN else f"forget[{name!r}]" for (side, name), rows in texts.items() if not rows]
    if empty:
        raise UnlearnError(f"{empty[0]}=[]: expected at least one text. Pass texts, or omit the set.")
    sizes = {"batch_size": batch_size, "max_length": max_length}
    before = [one.name for one in there if one.active]
    try:
        figures = [
            figure
            for (side, name), rows in texts.items()
            for figure in _figures(model, tokenizer, side, name, rows, list(forget), sizes, progress)
        ]
    finally:
        enable_guardrails(model, before)
    about = {"guardrails": ", ".join(forget), **sizes}
    return Report("Guardrails together", tuple(figures), about)


def _figures(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    side: str,
    data: str,
    texts: list[str],
    names: list[str],
    sizes: dict[str, Any],
    progress: bool,
) -> list[Figure]:
    rows, alone = rows_digest([texts, sizes["max_length"]]), [""] * len(texts)

    def losses(active: list[str], title: str) -> Tensor:
        enable_guardrails(model, active)
        return row_losses(model, tokenizer, texts, **sizes, progress=f"{data}: {title}" if progress else None)

    enable_guardrails(model, names)
    fired = row_firings(model, tokenizer, texts, **sizes, progress=f"{data}: gates" if progress else None)
    none, together = losses([], "none"), losses(names, TOGETHER)
    single = {name: losses([name], name) for name in names}
    changes = {f"loss:{name}": found - none for name, found in single.items()} | {f"loss:{TOGETHER}": together - none}
    if data in single:
        changes["interference"] = together - single[data]
    return [
        *(figure_of_rows(side, data, f"fires:{name}", "share", fired[name].double(), alone, rows) for name in names),
        *(figure_of_rows(side, data, metric, "nats", found, alone, rows) for metric, found in changes.items()),
    ]
