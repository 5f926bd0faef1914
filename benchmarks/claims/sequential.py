"""Sequential unlearning: four topics one after another, and what each does to the others."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.claims.claim import Claim, Verdict, Work, holds
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.choice import BUDGET
from benchmarks.forget.fitting import STEPS, train
from benchmarks.forget.measures import guarded_losses, text_losses
from benchmarks.forget.setting import Setting, load_texts, read_choices
from sae_unlearn import fit_guardrail
from sae_unlearn.guardrail import GuardrailError, detach_guardrail


AFTER = ("high_school_us_history", "marketing", "high_school_psychology")
"""The topics that follow the setting's own: those of the validation, so that no reported one is looked at twice."""

GRADIENT = "GradDiff"
KEPT = 0.8
RULE = (
    f"after four topics each is forgotten at least {KEPT:g} times as much as when it was the last one, other text "
    f"loses at most {BUDGET:g}, and {GRADIENT}, trained on with the same budget, has forgotten less in the mean"
)


def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """Two interference tables: changes of loss of each topic, and of other text, after each topic that was added."""
    names = [setting.texts.name, *(name for name in AFTER if name != setting.texts.name)]
    if work.quick:
        names = names[:2]
    mine = {name: load_texts(work.folder, name, setting.size, setting.seed) for name in names}
    barred = {
        f"{c.question}\nAnswer: {c.options[c.right]}"
        for name in names
        for c in read_choices(work.folder, name, set(), 10**6, 0)
    }
    others = {name: _without(barred, texts) for name, texts in mine.items()}
    measured = {name: texts.test for name, texts in mine.items()} | {"other": others[names[0]].other_test}
    with cached_front(setting.model, setting.layer, work.front):
        base = {part: text_losses(setting, setting.model, texts) for part, texts in measured.items()}
        guarded, refused = work.part("guardrails", lambda: _stacked(setting, others, measured, base))
    return {
        "topics": names,
        "guardrails": guarded,
        "refused": refused,
        GRADIENT: work.part(GRADIENT, lambda: _trained(setting, others, measured, base, 2 if work.quick else STEPS)),
    }


def _without(barred: set[str], texts: Any) -> Any:
    """The same texts, none of the other ones about any of the topics."""
    parts = ("other_fit", "other_validation", "other_test")
    return replace(texts, **{part: [t for t in getattr(texts, part) if t not in barred] for part in parts})


def _stacked(
    setting: Setting, texts: dict[str, Any], measured: dict[str, list[str]], base: dict[str, torch.Tensor]
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Guardrails with the default settings, one joining the others."""
    model, table, refused = setting.model, [], {}
    for name, mine in texts.items():
        try:
            model = fit_guardrail(
                model,
                setting.tokenizer,
                setting.sae,
                mine.fit,
                mine.other_fit,
                adapter_name=name,
                max_length=setting.size.max_length,
                progress=False,
            )
        except GuardrailError as error:
            refused[name] = str(error)
        table.append(
            {
                part: float((guarded_losses(setting, model, some, base[part])[0] - base[part]).mean())
                for part, some in measured.items()
            }
        )
    if len(refused) < len(texts):
        detach_guardrail(model)
    return table, refused


def _trained(
    setting: Setting,
    texts: dict[str, Any],
    measured: dict[str, list[str]],
    base: dict[str, torch.Tensor],
    steps: int,
) -> list[dict[str, float]]:
    """The gradient method, going on with one LoRA; after each topic its last state within the budget."""
    model, table = None, []
    for mine in texts.values():
        model, keeper, _ = train(replace(setting, texts=mine), GRADIENT, steps, model=model)
        if keeper.step is not None:
            keeper.restore(model)
        table.append(
            {part: float((text_losses(setting, model, some) - base[part]).mean()) for part, some in measured.items()}
        )
        gc.collect()
    model.unload()
    return table


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`; where several topics came first, the worst of them counts."""
    parts, yes = [], True
    for one in found:
        ours, theirs, names = one["guardrails"], one[GRADIENT][-1], one["topics"]
        kept = min(ours[-1][name] / max(ours[i][name], 1e-9) for i, name in enumerate(names))
        mean, mean_theirs = (sum(row[name] for name in names) / len(names) for row in (ours[-1], theirs))
        yes = yes and not one["refused"] and kept >= KEPT and ours[-1]["other"] <= BUDGET and mean > mean_theirs
        parts.append(
            f"first {names[0]}: least kept {kept:.2f}, mean {mean:+.2f}, other text {ours[-1]['other']:+.3f} "
            f"({GRADIENT} {mean_theirs:+.2f}, {theirs['other']:+.3f})"
        )
    return holds(yes, "; ".join(parts))


CLAIM = Claim("sequential unlearning", RULE, measure, judge)
