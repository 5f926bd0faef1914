"""What several guardrails on one model do to each other: whose text each gate fires on, and what their edits add up to.

For sets `a` and `b` with texts `T_b`, and the loss in nats per token,

    fires:a on b       share of T_b on which the gate of a fires
    loss a on b        mean over T_b of  loss(a alone) - loss(none)
    loss together on b mean over T_b of  loss(all) - loss(none)
    interference on b  mean over T_b of  loss(all) - loss(b alone)

and on the retain texts the same without the last.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.evaluation.metrics.firing import row_firings
from sae_unlearn.evaluation.metrics.text import row_losses
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, fingerprint
from sae_unlearn.evaluation.report.report import Report
from sae_unlearn.guardrail import GuardrailError, enable_guardrails, list_guardrails


TOGETHER = "together"
RETAIN = "retain"


def interference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[str] | None = None,
    *,
    batch_size: int = 4,
    max_length: int = 512,
    progress: bool = True,
) -> Report:
    """Every gate on every set's text, and every edit alone and all together. Texts are run once for each set, once with
    all, and once with none.

    Args:
        model: a model with guardrails.
        forget: held-out texts by the names of the guardrails whose topic they are.
        retain: other text.
        batch_size, max_length: of the forward passes.
        progress: show progress bars.

    Returns:
        A report with figures `fires:<set>`, `loss:<set>`, `loss:together` and `interference`, the texts' set as their
        data. The guardrails that were in force are again.

    Raises:
        GuardrailError: there is no guardrail of a name.
        ValueError: a set has no texts.
    """
    there = list_guardrails(model)
    absent = [name for name in forget if name not in {one.name for one in there}]
    if absent or not forget:
        missing, names = absent[0] if absent else None, sorted(one.name for one in there)
        raise GuardrailError(f"There is no guardrail {missing!r} on the model; there are {names}.")
    texts = {("forget", name): list(rows) for name, rows in forget.items()}
    if retain is not None:
        texts["retain", RETAIN] = list(retain)
    empty = [name for (_, name), rows in texts.items() if not rows]
    if empty:
        raise ValueError(f"There are no texts of {empty[0]!r}; give some, or leave it out.")
    before = [one.name for one in there if one.active]
    try:
        figures = [
            figure
            for (side, name), rows in texts.items()
            for figure in _figures(model, tokenizer, side, name, rows, list(forget), (batch_size, max_length), progress)
        ]
    finally:
        enable_guardrails(model, before)
    about = {"guardrails": ", ".join(forget), "batch_size": batch_size, "max_length": max_length}
    return Report("Guardrails together", tuple(figures), about)


def _figures(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    side: str,
    data: str,
    texts: list[str],
    names: list[str],
    sizes: tuple[int, int],
    progress: bool,
) -> list[Figure]:
    rows, alone = fingerprint([texts, sizes[1]]), [""] * len(texts)

    def losses(active: list[str], title: str) -> Tensor:
        enable_guardrails(model, active)
        return row_losses(model, tokenizer, texts, *sizes, f"{data}: {title}" if progress else None)

    enable_guardrails(model, names)
    fired = row_firings(model, tokenizer, texts, *sizes, f"{data}: gates" if progress else None)
    none, together = losses([], "none"), losses(names, TOGETHER)
    single = {name: losses([name], name) for name in names}
    changes = {f"loss:{name}": found - none for name, found in single.items()} | {f"loss:{TOGETHER}": together - none}
    if data in single:
        changes["interference"] = together - single[data]
    return [
        *(figure_of_rows(side, data, f"fires:{name}", "share", fired[name].double(), alone, rows) for name in names),
        *(figure_of_rows(side, data, metric, "nats", found, alone, rows) for metric, found in changes.items()),
    ]
