"""One method at its strength: fitted or trained, chosen on validation texts, and measured on test texts."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.baselines import get_method, train_baseline
from benchmarks.forget.budget import LossBudget, content_rows
from benchmarks.forget.cached_front import Front
from benchmarks.forget.choice import BUDGET, Candidate, choose
from benchmarks.forget.measures import (
    SIDES,
    choices_compared,
    compared,
    guarded_losses,
    right_choices,
    text_losses,
)
from benchmarks.forget.methods import GRADIENTS, GUARDS, PROMPTS, Guard
from benchmarks.forget.setting import PlainText, Setting
from sae_unlearn import fit_guardrail
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail import GuardrailError, detach_guardrail


STEPS, EVERY, BATCH, MAX_LENGTH = 24, 4, 3, 64
LEAST_SCALE = 0.05  # a method that is never within the budget is trained again at a quarter of its rate
FORGET_BATCH = 8  # rows of a look


@contextmanager
def fitted(setting: Setting, options: dict[str, Any], forget: list[str] | None = None) -> Iterator[PeftModel]:
    """A guardrail with these options of `fit_guardrail` on the model, taken off at the end; `forget` instead of the
    topic's texts."""
    texts = setting.texts
    guarded = fit_guardrail(
        setting.model,
        setting.tokenizer,
        setting.sae,
        texts.fit if forget is None else forget,
        texts.other_fit,
        max_length=setting.size.max_length,
        progress=False,
        **options,
    )
    try:
        yield guarded
    finally:
        detach_guardrail(guarded)


def try_doses(
    setting: Setting, guard: Guard, base: dict[str, Any], forget: list[str] | None = None
) -> tuple[list[Candidate], dict[str, str]]:
    """Every dose of a guardrail on the validation texts, and of those that could not be fitted, why."""
    found, refused = [], {}
    for dose in guard.doses:
        try:
            with fitted(setting, guard.at(dose), forget) as guarded:
                found.append(Candidate.of(dose, *(c for c, _ in validation_changes(setting, guarded, base))))
        except GuardrailError as error:
            refused[str(dose)] = str(error)
    return found, refused


def validation_changes(
    setting: Setting, guarded: PeftModel, base: dict[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Changes of loss, and where a guardrail fired, on the topic's validation texts and on the other ones."""
    found = []
    for part in ("validation", "other_validation"):
        before = torch.tensor(base[part], dtype=torch.float64)
        losses, fired = guarded_losses(setting, guarded, getattr(setting.texts, part), before)
        found.append((losses - before, fired))
    return found


def run_guard(setting: Setting, name: str, base: dict[str, Any], front: Front) -> dict[str, Any]:
    """A guardrail of `GUARDS`: the chosen dose, what fitting it took, and the test."""
    guard = GUARDS[name]
    candidates, refused = try_doses(setting, guard, base)
    best = choose(candidates)
    found = _header(candidates, best) | {"refused": refused}
    if best is None:
        return found
    before, start, cpu = front.run + front.reused, time.monotonic(), time.process_time()
    with fitted(setting, guard.at(best.strength)) as guarded:
        rows = front.run + front.reused - before
        found["fit"] = {
            "seconds": time.monotonic() - start + rows * base["front_seconds_per_row"],
            "cpu_seconds": time.process_time() - cpu + rows * base["front_cpu_seconds_per_row"],
        }
        config = guarded.peft_config["default"]
        found |= {"threshold": config.threshold, "features": config.feature_ids}
        found["edit_to_residual"] = config.calibration["edit_to_residual"]
        for part in SIDES:
            losses, fired = guarded_losses(
                setting, guarded, getattr(setting.texts, part), torch.tensor(base[part], dtype=torch.float64)
            )
            found[part] = compared(losses, base[part], fired)
        return found | _choices(setting, base, lambda some: right_choices(setting, guarded, some))


def run_prompt(setting: Setting, name: str, base: dict[str, Any]) -> dict[str, Any]:
    """A prompt before every text, of the wordings of `PROMPTS`."""
    wordings = [wording.format(topic=setting.texts.name.replace("_", " ")) for wording in PROMPTS[name]]

    def losses(part: str, prompt: str) -> torch.Tensor:
        return text_losses(setting, setting.model, getattr(setting.texts, part), prompt)

    candidates = [
        Candidate.of(
            number,
            *(losses(part, prompt) - torch.tensor(base[part]) for part in ("validation", "other_validation")),
        )
        for number, prompt in enumerate(wordings)
    ]
    best = choose(candidates)
    found = _header(candidates, best) | {"fit": {"seconds": 0.0, "cpu_seconds": 0.0}}
    if best is None:
        return found
    prompt = wordings[int(best.strength)]
    found |= {"prompt": prompt} | {part: compared(losses(part, prompt), base[part]) for part in SIDES}
    return found | _choices(setting, base, lambda some: right_choices(setting, setting.model, some, prompt))


def run_gradient(setting: Setting, name: str, base: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    """A gradient method of `GRADIENTS`: its last state within the budget, what training took, and the test."""
    scale = 1.0
    tuned, keeper, spent = train(setting, name, steps)
    while not keeper.step and scale > LEAST_SCALE:  # never within the budget but at the start
        tuned.unload()
        scale /= 4
        tuned, keeper, spent = train(setting, name, steps, scale)
    best = next((c for c in keeper.candidates if keeper.step and c.strength == keeper.step), None)
    found = _header(keeper.candidates, best) | {"fit": spent, "rate_scale": scale}
    try:
        if best is not None:
            keeper.restore(tuned)
            for part in SIDES:
                found[part] = compared(text_losses(setting, tuned, getattr(setting.texts, part)), base[part])
            found |= _choices(setting, base, lambda some: right_choices(setting, tuned, some))
    finally:
        tuned.unload()
    return found


def train(
    setting: Setting,
    name: str,
    steps: int = STEPS,
    scale: float = 1.0,
    model: PeftModel | None = None,
    looks: bool = True,
) -> tuple[PeftModel, LossBudget, dict[str, float]]:
    """A LoRA of rank 8 on every linear module, trained; its looks; and the seconds of the training without them.

    Args:
        scale: multiplies the learning rate.
        model: goes on with the LoRA that is on it.
        looks: measure validation texts now and then, which takes more memory than a step; without, there are none.
    """
    gradient, texts = GRADIENTS[name], setting.texts
    torch.manual_seed(setting.seed)
    if model is None:
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(setting.model, config)
    keeper = LossBudget(
        model,
        _encoded(setting, texts.other_validation),
        _encoded(setting, texts.validation),
        BUDGET,
        min(EVERY, steps),
    )
    if looks:
        keeper(0, model)
    keeper.seconds = keeper.cpu_seconds = 0.0
    options = {"layer": setting.layer} if gradient.name == "rmu" else {}
    start, cpu = time.monotonic(), time.process_time()
    try:
        train_baseline(
            model,
            setting.tokenizer,
            get_method(gradient.name, **options),
            [PlainText(text) for text in texts.fit],
            [PlainText(text) for text in texts.other_fit],
            steps,
            gradient.learning_rate * scale,
            seed=setting.seed,
            batch_size=BATCH,
            max_length=MAX_LENGTH,
            on_step=lambda step, model: looks and step > 0 and keeper(step, model),
        )
    except FloatingPointError:  # what came before is kept
        keeper.candidates.append(Candidate(steps, float("nan"), float("inf")))
    return (
        model.eval(),
        keeper,
        {
            "seconds": time.monotonic() - start - keeper.seconds,
            "cpu_seconds": time.process_time() - cpu - keeper.cpu_seconds,
        },
    )


def time_front(setting: Setting, texts: int = 16) -> dict[str, float]:
    """What the layers up to the guarded one cost a row of the texts to fit on."""
    some = random.Random(0).sample([*setting.texts.fit, *setting.texts.other_fit], texts)
    rows = [setting.tokenizer(t, truncation=True, max_length=setting.size.max_length)["input_ids"] for t in some]
    start, cpu = time.monotonic(), time.process_time()
    for _ in residual_batches(setting.model, rows, setting.layer, 8):
        pass
    return {
        "front_seconds_per_row": (time.monotonic() - start) / len(rows),
        "front_cpu_seconds_per_row": (time.process_time() - cpu) / len(rows),
    }


def _header(candidates: list[Candidate], best: Candidate | None) -> dict[str, Any]:
    return {
        "candidates": [c.to_dict() for c in candidates],
        "chosen": None if best is None else best.to_dict(),
    }


def _choices(setting: Setting, base: dict[str, Any], right: Callable[[Any], list[bool]]) -> dict[str, Any]:
    return {
        part: choices_compared(right(getattr(setting.texts, part)), base[part]) for part in ("choices", "other_choices")
    }


def _encoded(setting: Setting, texts: list[str]) -> list[Any]:
    rows = [PlainText(text) for text in texts]
    return [
        content_rows(setting.tokenizer, rows[i : i + FORGET_BATCH], setting.size.max_length)
        for i in range(0, len(rows), FORGET_BATCH)
    ]
