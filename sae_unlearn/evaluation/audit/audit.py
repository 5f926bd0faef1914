"""Run every attack for which there is data, with its controls, and report the results."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.checks import check_choice
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.audit.attacks.base import NotPossible
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER
from sae_unlearn.evaluation.audit.attacks.neighbors import benign_neighbors
from sae_unlearn.evaluation.audit.context import Inquiry, as_facts
from sae_unlearn.evaluation.audit.registry import ATTACKS, FROM_ZERO, budget
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.evaluate import about_model
from sae_unlearn.evaluation.report.comparison import paired_change
from sae_unlearn.options.evaluation import AuditConfig
from sae_unlearn.options.field import merged, takes_options


@takes_options(AuditConfig)
def audit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Any,
    retain: Any = None,
    *,
    neighbors: Any = None,
    unnamed: Any = None,
    names: Sequence[str] = (),
    unknown: Any = None,
    base: nn.Module | None = None,
    filler: Sequence[str] = FILLER,
    direction: Tensor | None = None,
    title: str | None = None,
    config: AuditConfig | None = None,
    **options: Any,
) -> AuditReport:
    """Measure how much forgotten knowledge attacks recover from a bare, a guarded or a LoRA model.

    Every attack is measured by recall of the forgotten facts and, if guardrails are attached, by how often they fire,
    with n and 95 % interval. It has two controls. The same prompts on the base model: what the attack itself makes
    unanswerable is not a success of the adapter. And `retain` under the same attack, on which nothing should change.
    The report and the attack's module state its budget. The model is left as it was.

    Example:

    ```python
    report = audit(guarded, tokenizer, forget=facts, retain=others, neighbors={"chemistry": texts})
    print(report.to_markdown())
    report.save("audit")
    ```

    Args:
        model (nn.Module): Any causal language model of transformers, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget (list of Fact or Choice, or mapping): Questions that should be forgotten, or a mapping of names to such
            lists. A choice whose options are shown asks for the letter of the right one.
        retain (list of Fact or Choice, or mapping, *optional*): Questions on other topics.
        neighbors (list or mapping, *optional*): Harmless facts, choices or texts near the topic, for the false alarms.
        unnamed (list of Fact or Choice, *optional*): Facts whose prompts lead to the forgotten facts without a name.
        names (sequence of str, *optional*, defaults to ()): Names that the prompts of `unnamed` must not contain.
        unknown (list of Fact or Choice, *optional*): Facts that the base does not know, the control of relearning.
        base (nn.Module, *optional*): The model without the adapters. None disables the adapters of `model`.
        filler (sequence of str, *optional*, defaults to texts of this package): Harmless paragraphs for dilution.
        direction (Tensor, *optional*): Direction to add at the layer, `[d_in]`. None takes what the adapters removed
            there on half of the facts, and measures on the other half.
        title (str, *optional*): Title of the report. None names the model.
        config (AuditConfig, *optional*): The options. None takes the defaults.
        options: Fields of `AuditConfig` by name, which override `config`. `attacks` are names in `ATTACKS`; an attack
            that lacks data is skipped with a note.

    Returns:
        AuditReport: The rows of all attacks.

    Raises:
        UnlearnError: If `forget` is empty, a fact has no answers, a row is of another type, an attack is unknown, a
            setting is out of range, or a prompt of `unnamed` contains one of `names`.
    """
    settings = merged(AuditConfig, config, options, UnlearnError)
    chosen = list(ATTACKS) if settings.attacks is None else list(dict.fromkeys(settings.attacks))
    for name in chosen:
        check_choice("attacks", name, ATTACKS)
    it = Inquiry(
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        base=base,
        forget=as_facts(forget, "forget"),
        retain=[] if retain is None else as_facts(retain, "retain"),
        unnamed=[] if unnamed is None else as_facts(unnamed, "unnamed"),
        names=tuple(names),
        unknown=[] if unknown is None else as_facts(unknown, "unknown"),
        filler=filler,
        lengths=settings.lengths,
        steps=settings.steps,
        layer=settings.layer,
        direction=direction,
        seed=settings.seed,
    )
    rows: list[AuditRow] = []
    near = None
    with evaluation_mode(model), nullcontext() if base is None else evaluation_mode(base):
        with tqdm(["none", *chosen], desc="audit", unit="attack", disable=not settings.progress) as bar:
            for name in bar:
                bar.set_description(f"audit: {'the questions as they are' if name == 'none' else name}")
                try:
                    rows += [_unattacked(it)] if name == "none" else ATTACKS[name][1](it)
                except NotPossible as error:
                    it.notes.append(f"{name}: skipped. {error}")
                bar.set_postfix(asked=it.asked)
        if neighbors is not None:
            near = benign_neighbors(it, neighbors, retain)
        else:
            it.notes.append("neighbors=None: not measured. Pass neighbors= (harmless rows near the topic).")
    about = about_model(model) | {
        "forgotten facts": len(it.forget),
        "other facts": len(it.retain),
        "seed": settings.seed,
        "chat_template": settings.chat_template,
    }
    return AuditReport(
        title or f"Audit of {about['model']}" + ("" if about["adapters"] == "none" else f" with {about['adapters']}"),
        tuple(_with_changes(rows)),
        {name: budget(name) for name in chosen if any(row.attack == name for row in rows)},
        None if near is None else near[0],
        None if near is None else near[1],
        about,
        tuple(dict.fromkeys(it.notes)),
    )


def _unattacked(it: Inquiry) -> AuditRow:
    return AuditRow("none", "", 0.0, *it.with_control(it.ask_all))


def _with_changes(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """The rows with the change of recall from the start of their attack."""
    found = []
    for row in rows:
        start = rows[0]
        if row.attack in FROM_ZERO:
            start = next(r for r in rows if (r.attack, r.variant) == (row.attack, row.variant))
        before, after = start.find(), row.find()
        compared = row is not start and row.attack != "unnamed"
        if compared and before is not None and after is not None and before.groups == after.groups:
            row = replace(row, change=paired_change(before, after))
        found.append(row)
    return found
