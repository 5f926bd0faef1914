"""`audit`: what someone would try to get forgotten knowledge back, and what that brings."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.evaluation.audit.attacks.base import NotPossible
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER
from sae_unlearn.evaluation.audit.attacks.neighbours import benign_neighbours
from sae_unlearn.evaluation.audit.context import Inquiry, as_facts
from sae_unlearn.evaluation.audit.registry import ATTACKS, FROM_ZERO, budget
from sae_unlearn.evaluation.audit.report import AuditReport
from sae_unlearn.evaluation.audit.row import AuditRow
from sae_unlearn.evaluation.evaluate import about_model
from sae_unlearn.evaluation.figures import Settings
from sae_unlearn.evaluation.report.comparison import paired_change


def audit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Any,
    retain: Any = None,
    *,
    neighbours: Any = None,
    unnamed: Any = None,
    names: Sequence[str] = (),
    unknown: Any = None,
    base: nn.Module | None = None,
    attacks: Iterable[str] | None = None,
    filler: Sequence[str] = FILLER,
    lengths: Sequence[int] = (16, 64, 256),
    steps: Sequence[int] = (0, 10, 40),
    layer: int | None = None,
    direction: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 8,
    max_length: int = 512,
    max_new_tokens: int | None = None,
    chat_template: bool = False,
    title: str | None = None,
    progress: bool = True,
) -> AuditReport:
    """Attack a base, a guarded or a LoRA model alike. The model is left as it was.

    Every attack is measured by recall of the forgotten facts (and, where guardrails are attached, by whether they
    fire), with n and 95 % interval. Its controls: the same prompts on the base model, since what the attack itself
    makes unanswerable is no success of the adapter; and `retain` in the same attack, on which nothing should change.
    What an attack uses is told in the report and in its module.

    Example:

    ```python
    report = audit(guarded, tokenizer, forget=facts, retain=others, neighbours={"chemistry": texts})
    print(report.to_markdown())
    report.save("audit")
    ```

    Args:
        model: any causal language model of transformers, with or without adapters.
        forget: `Fact`s or `Choice`s that should be forgotten, or a mapping of names to such sets; a choice whose
            options are shown asks for the right one's letter.
        retain: the same of other things.
        neighbours: harmless facts, choices or texts near the topic, or a mapping of names to them: the over-blocking.
        unnamed: facts whose prompts lead to what is forgotten without naming it, and `names`, the names to look for.
        unknown: facts that the base model does not know: the control of relearning.
        base: the model without the adapters; None takes a model with its adapters out of force.
        attacks: by name, see `ATTACKS`; None takes all, and notes those for which something is missing.
        filler: harmless paragraphs for dilution.
        lengths: words of filler.
        steps: of relearning, after which it is measured; it is before any, too.
        layer: at which `direction` is added; None takes the last guarded layer, or else the middle.
        direction: `[d_in]`; None takes what the adapters took there on half of the facts, and measures the others.
        seed: of what is drawn.
        batch_size, max_length, max_new_tokens, chat_template, title, progress: as in `evaluate`.

    Raises:
        ValueError: no facts, facts without answers, an unknown attack, rows of another kind, settings out of range, or
            `unnamed` prompts that name one of `names`.
    """
    chosen = list(ATTACKS) if attacks is None else list(dict.fromkeys(attacks))
    unknown_attack = next((name for name in chosen if name not in ATTACKS), None)
    if unknown_attack is not None:
        raise ValueError(f"There is no attack {unknown_attack!r}; choose from {', '.join(ATTACKS)}.")
    settings = Settings(batch_size, max_length, max_new_tokens, None, chat_template, progress)
    it = Inquiry(
        model,
        tokenizer,
        as_facts(forget, "forget"),
        [] if retain is None else as_facts(retain, "retain"),
        settings,
        base,
        [] if unnamed is None else as_facts(unnamed, "unnamed"),
        tuple(names),
        [] if unknown is None else as_facts(unknown, "unknown"),
        filler=filler,
        lengths=lengths,
        steps=steps,
        layer=layer,
        direction=direction,
        seed=seed,
    )
    rows: list[AuditRow] = []
    near = None
    with evaluation_mode(model), nullcontext() if base is None else evaluation_mode(base):
        with tqdm(["none", *chosen], desc="audit", unit="attack", disable=not progress) as bar:
            for name in bar:
                bar.set_description(f"audit: {'the questions as they are' if name == 'none' else name}")
                try:
                    rows += [_unattacked(it)] if name == "none" else ATTACKS[name][1](it)
                except NotPossible as error:
                    it.notes.append(f"{name}: left out; {error}")
                bar.set_postfix(asked=it.asked)
        if neighbours is not None:
            options = {name: value for name, value in vars(settings).items() if name != "orders"}
            near = benign_neighbours(model, tokenizer, neighbours, retain, base, **options)
        else:
            it.notes.append("neighbours: not measured; pass neighbours= (harmless rows near the topic).")
    about = about_model(model) | {
        "forgotten facts": len(it.forget),
        "other facts": len(it.retain),
        "seed": seed,
        "chat_template": chat_template,
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
    """Each row with the change of recall from where its attack starts."""
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
