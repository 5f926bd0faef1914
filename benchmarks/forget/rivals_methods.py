"""The methods of `rivals`: what each makes of the model, at a strength that is chosen on validation rows.

Every method yields the model as it answers, and a prompt that stands before what it is asked.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.baselines import Batch, get_method, train_baseline
from benchmarks.forget.budget import LossBudget, content_rows, row_means
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.choice import BUDGET, Candidate, choose
from benchmarks.forget.fitting import fitted
from benchmarks.forget.methods import GRADIENTS, GUARDS, OURS, PROMPTS, RESIDUAL_DOSES
from benchmarks.forget.rivals_sets import Contest, as_text
from benchmarks.forget.setting import PlainText, Setting
from benchmarks.gates.text_gates import TextGate, fit_text_gates
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.errors import UnlearnError
from sae_unlearn.guardrail import GuardrailError


EMBEDDING = "embedding gate, norm kept"
ALWAYS_ON = "static clamp"
METHODS = ("base", EMBEDDING, ALWAYS_ON, "NPO", "RMU", *PROMPTS, OURS)
STEPS, EVERY, BATCH, MAX_LENGTH, LOOK_BATCH = 40, 8, 4, 96, 8
SCALES = (1.0, 0.25, 0.0625)
ALPHA = 0.025
CUE = "\nAnswer:"

Fit = Callable[[Sequence[str], np.ndarray], Callable[[Sequence[str]], np.ndarray]]
Applied = tuple[nn.Module, str]
"""The model as it answers, and the prompt before every question."""


@dataclass
class Arena:
    """A contest with its model.

    Attributes:
        setting: the taught model, the SAE, and the contest's rows as texts.
        text_fit: what the embedding gate is fitted by.
        bare: losses of the taught model on validation rows, measured once.
    """

    contest: Contest
    setting: Setting
    text_fit: Fit
    steps: int = STEPS
    bare: dict[str, Tensor] = field(default_factory=dict)

    def losses(self, part: str, model: nn.Module, prompt: str = "") -> Tensor:
        """Mean loss of each validation row, nats per scored token, `[n]`."""
        rows = [with_prompt(row, prompt) for row in getattr(self.contest, part)]
        room = MAX_LENGTH + len(self.setting.tokenizer(prompt)["input_ids"])
        return row_means(model, self.batches(rows, room))

    def batches(self, rows: Sequence[PlainText], max_length: int = MAX_LENGTH) -> list[Batch]:
        """Rows as batches."""
        tokenizer = self.setting.tokenizer
        starts = range(0, len(rows), LOOK_BATCH)
        return [content_rows(tokenizer, rows[i : i + LOOK_BATCH], max_length) for i in starts]

    def candidate(self, strength: float, model: nn.Module, prompt: str = "") -> Candidate:
        """What a strength does to the validation rows."""
        changes = []
        for part in ("validation", "other_validation"):
            if part not in self.bare:
                raise UnlearnError(f"bare={sorted(self.bare)}: expected the losses of the bare model on {part}.")
            changes.append(self.losses(part, model, prompt) - self.bare[part])
        return Candidate.of(strength, *changes)


def with_prompt(row: PlainText, prompt: str) -> PlainText:
    """A row with a prompt before it, of which nothing is scored."""
    if not prompt:
        return row
    return row._replace(prompt=prompt + row.prompt) if row.answer else PlainText(prompt.rstrip(), row.prompt)


@contextmanager
def applied(arena: Arena, name: str) -> Iterator[tuple[Applied, dict[str, Any]]]:
    """A method at its strength, and how that was chosen."""
    if not arena.bare:
        for part in ("validation", "other_validation"):
            arena.bare[part] = arena.losses(part, arena.setting.model)
    if name == "base":
        yield (arena.setting.model, ""), {}
    elif name in GRADIENTS:
        with trained(arena, name) as found:
            yield found
    else:
        places = _places(arena, name)
        candidates, refused = [], {}
        with cached_front(arena.setting.model, arena.setting.layer) if name in GUARDS else nullcontext():
            for strength, place in places.items():
                try:
                    with place() as (model, prompt):
                        candidates.append(arena.candidate(strength, model, prompt))
                except GuardrailError as error:
                    refused[str(strength)] = str(error)
        best = choose(candidates) or min(candidates, key=lambda c: c.damage)
        with places[best.strength]() as both:
            yield both, chosen(candidates, best) | {"refused": refused}


def chosen(candidates: Sequence[Candidate], best: Candidate) -> dict[str, Any]:
    """The strengths tried, the one that was taken, and whether it is within the budget."""
    return {
        "candidates": [c.to_dict() for c in candidates],
        "chosen": best.to_dict(),
        "within": best.damage <= BUDGET,
    }


def _places(arena: Arena, name: str) -> dict[float, Callable[[], AbstractContextManager[Applied]]]:
    """Each strength of a method that is not trained."""
    if name in PROMPTS:
        prompts = [wording.format(topic=arena.contest.names) for wording in PROMPTS[name]]
        return {float(i): lambda p=prompt: _still(arena.setting.model, p) for i, prompt in enumerate(prompts)}
    if name == EMBEDDING:
        gate, direction = question_gate(arena), topic_direction(arena)
        return {dose: lambda d=dose: turned(arena, gate, direction, d) for dose in RESIDUAL_DOSES}
    guard = GUARDS[name]
    return {dose: lambda d=dose: _guarded(arena, guard.at(d)) for dose in guard.doses}


@contextmanager
def _still(model: nn.Module, prompt: str) -> Iterator[Applied]:
    yield model, prompt


@contextmanager
def _guarded(arena: Arena, options: dict[str, Any]) -> Iterator[Applied]:
    with fitted(arena.setting, options) as model:
        yield model, ""


@contextmanager
def trained(arena: Arena, name: str) -> Iterator[tuple[Applied, dict[str, Any]]]:
    """A gradient method's last state within the budget; without one, its first state at the lowest rate."""
    setting, contest, gradient = arena.setting, arena.contest, GRADIENTS[name]
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    options = {"layer": setting.layer} if gradient.name == "rmu" else {}
    for scale in SCALES:
        torch.manual_seed(setting.seed)
        tuned = get_peft_model(setting.model, config)
        keeper = LossBudget(
            tuned,
            arena.batches(contest.other_validation),
            arena.batches(contest.validation),
            BUDGET,
            min(EVERY, arena.steps),
        )
        try:
            train_baseline(
                tuned,
                setting.tokenizer,
                get_method(gradient.name, **options),
                contest.forget,
                contest.keep,
                arena.steps,
                gradient.learning_rate * scale,
                seed=setting.seed,
                batch_size=BATCH,
                max_length=MAX_LENGTH,
                on_step=lambda step, model, keeper=keeper: step > 0 and keeper(step, model),
            )
        except FloatingPointError:  # what came before is kept
            keeper.candidates.append(Candidate(arena.steps, float("nan"), float("inf")))
        if keeper.step or scale == SCALES[-1]:
            break
        tuned.unload()
    try:
        if keeper.step:
            keeper.restore(tuned)
        best = next((c for c in keeper.candidates if c.strength == keeper.step), keeper.candidates[-1])
        yield (tuned.eval(), ""), chosen(keeper.candidates, best) | {"rate_scale": scale}
    finally:
        tuned.unload()
        setting.model.requires_grad_(False)


def questions_of(rows: Sequence[PlainText]) -> list[str]:
    """What a gate on the question sees of rows: what stands before the answer."""
    return list(dict.fromkeys(question_of(as_text(row)) for row in rows))


def question_of(text: str) -> str:
    """A text up to its last cue for an answer, or the whole of it."""
    return text.rpartition(CUE)[0] or text


def question_gate(arena: Arena) -> TextGate:
    """A gate on the question as a whole; see `gates/text_gates.py`."""
    topic, other = questions_of(arena.contest.forget), questions_of(arena.contest.keep)
    return fit_text_gates(topic, other, arena.text_fit, ALPHA)[0]


def topic_direction(arena: Arena) -> Tensor:
    """`v [d]`, of norm 1: from the mean residual of the questions to forget to that of the others.

    v = (m_keep - m_forget) / |m_keep - m_forget|,   m the mean over tokens but each row's first
    """
    setting, means = arena.setting, []
    for rows in (arena.contest.keep, arena.contest.forget):
        texts = questions_of(rows)
        ids = [setting.tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in texts]
        found = []
        for batch in residual_batches(setting.model, ids, setting.layer, LOOK_BATCH):
            kept = batch.kept.clone()
            kept[:, 0] = False  # its state is many times longer than any other's
            found.append(batch.residual[kept].double())
        means.append(torch.cat(found).mean(dim=0))
    return torch.nn.functional.normalize(means[0] - means[1], dim=0).float()


@contextmanager
def turned(arena: Arena, gate: TextGate, direction: Tensor, dose: float) -> Iterator[Applied]:
    """The model whose residual stream is turned, its norm kept, where the gate fires on a row's question.

        h' = |h| u / |u|,   u = h + dose |h| v

    The gate judges the row that a pass begins with; tokens that follow one by one keep its verdict.
    """
    model, tokenizer = arena.setting.model, arena.setting.tokenizer
    fired = torch.zeros(0, dtype=torch.bool)

    def judge(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal fired
        ids = args[0] if args else kwargs["input_ids"]
        if ids is None or (ids.shape[1] == 1 and len(ids) == len(fired)):
            return
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        rows = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
        texts = [question_of(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
        fired = torch.from_numpy(gate.score(texts) > gate.threshold)

    def edit(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        norm = hidden.norm(dim=-1, keepdim=True)
        u = hidden + dose * norm * direction.to(hidden.dtype)
        new = torch.where(fired[:, None, None], u * norm / u.norm(dim=-1, keepdim=True), hidden)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with ExitStack() as hooks:
        layer = find_decoder_layers(model).layers[arena.setting.layer]
        for handle in (model.register_forward_pre_hook(judge, with_kwargs=True), layer.register_forward_hook(edit)):
            hooks.callback(handle.remove)
        yield model, ""
