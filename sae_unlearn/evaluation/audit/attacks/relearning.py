"""Attack: train the tuned model on some of the forgotten facts and measure the others.

Knowledge that is only hidden returns after a few steps on other facts of the same kind. Knowledge that is gone must be
learned again, as unknown entities must. So the curve needs its control: the same training of the *base* model on facts
of unknown entities, measured on other unknown entities.

Guardrails stay active during training, as at a service that lets its users fine-tune. An attacker with the weights
would remove them instead. Full training is in float32 whatever the model's dtype: in bfloat16 rounding would lose most
steps, and in float16 AdamW divides by 0. Either would look like resistance.

Budget: white box, a LoRA of rank `rank` on every linear layer or all weights, `steps` steps of `batch_size` facts.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import input_device
from sae_unlearn.backbone.tokens import prompt_ids, right_padded
from sae_unlearn.checks import check_all, check_counts, check_integer
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured
from sae_unlearn.evaluation.audit.attacks.merged import guarded_again, merged_parts
from sae_unlearn.evaluation.metrics.recall import Fact


def relearning_attack(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    taught: Sequence[Fact],
    measure: Callable[[nn.Module], Measured],
    steps: Sequence[int] = (0, 5, 10, 20, 40, 80),
    learning_rate: float | None = None,
    rank: int = 8,
    batch_size: int = 4,
    seed: int = 0,
    progress: str | None = None,
    full: bool = False,
) -> list[AttackPoint[Measured]]:
    """Fine-tune a merged copy on `taught` and measure at some steps.

    The loss is the cross-entropy of the answer's tokens (of the first accepted answer), given the prompt. The optimizer
    is AdamW with a constant learning rate.

    Args:
        model (nn.Module): The tuned model, or the base model for the control. It is not changed.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        taught (sequence of Fact): Facts to train on. No fact of the same entities may be measured.
        measure (callable): Measure of the model at each of `steps`, in evaluation mode.
        steps (sequence of int, *optional*, defaults to (0, 5, 10, 20, 40, 80)): Optimizer steps after which to measure,
            the strengths of the points. 0 is before the first step.
        learning_rate (float, *optional*): None takes 2e-4 for a LoRA and 2e-5 for all weights.
        rank (int, *optional*, defaults to 8): Rank of the LoRA.
        batch_size (int, *optional*, defaults to 4): Facts per step.
        seed (int, *optional*, defaults to 0): Seed of the LoRA's weights and of the order of the facts.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        full (bool, *optional*, defaults to False): Train all weights instead of a LoRA, and ignore `rank`.

    Raises:
        UnlearnError: If `taught` or `steps` is empty, or a number is out of range.
    """
    check_all(taught, Fact, "taught", 1)
    check_all(steps, int, "steps", 1)
    for step in steps:
        check_integer("steps", step, 0)
    check_counts(rank=rank, batch_size=batch_size)
    rows = [_row(tokenizer, fact) for fact in taught]
    order = _batches(len(rows), batch_size, seed)
    points = []
    with torch.random.fork_rng():  # the caller's generator is not changed
        torch.manual_seed(seed)
        student = _student(model, None if full else rank)
        rate = (2e-5 if full else 2e-4) if learning_rate is None else learning_rate
        optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=rate)
        wanted = sorted(set(steps))
        for step in tqdm(range(wanted[-1] + 1), desc=progress, unit="step", disable=progress is None):
            if step:
                student.train()
                with torch.enable_grad():
                    loss = _answer_loss(student, [rows[i] for i in next(order)])
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
            if step in wanted:
                points.append(AttackPoint(float(step), measure(student.eval())))
    return points


def _student(model: nn.Module, rank: int | None) -> nn.Module:
    """A merged copy to train: a new LoRA of that rank, or all weights. Guardrails are attached last."""
    student, guards = merged_parts(model)
    if rank is None:
        weights = list(student.float().parameters())
        student = guarded_again(student, guards)
        for weight in weights:  # attaching a guardrail froze them
            weight.requires_grad_()
        return student
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    student = get_peft_model(student, config, adapter_name="relearning")
    return guarded_again(student, guards)


def split_subjects(facts: Sequence[Fact], share: float = 0.5, seed: int = 0) -> tuple[list[Fact], list[Fact]]:
    """Split facts into those to teach and those to measure, with no subject in both.

    Args:
        facts (sequence of Fact): Facts with a subject.
        share (float, *optional*, defaults to 0.5): Share of the subjects to teach.
        seed (int, *optional*, defaults to 0): Seed of the draw.

    Raises:
        UnlearnError: If a fact has no subject, or one side would be empty.
    """
    subjects = sorted({fact.subject for fact in facts})
    if "" in subjects:
        raise UnlearnError(
            "subject='': expected a subject for every fact. Set it, so that no entity is both taught and measured."
        )
    random.Random(seed).shuffle(subjects)
    taught = set(subjects[: round(share * len(subjects))])
    if not 0 < len(taught) < len(subjects):
        raise UnlearnError(
            f"share={share}: expected a share of {len(subjects)} subjects that leaves both sides non-empty."
        )
    return [f for f in facts if f.subject in taught], [f for f in facts if f.subject not in taught]


def _row(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and the number of the prompt's."""
    whole = prompt_ids(tokenizer, f"{fact.prompt} {fact.answers[0]}")
    return whole, len(prompt_ids(tokenizer, fact.prompt))


def _batches(rows: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices; every row comes once before any row repeats."""
    draw = random.Random(seed)
    pending: list[int] = []
    while True:
        while len(pending) < batch_size:
            pending += draw.sample(range(rows), rows)
        yield pending[:batch_size]
        pending = pending[batch_size:]


def _answer_loss(model: nn.Module, rows: list[tuple[list[int], int]]) -> Tensor:
    ids, kept = right_padded([row for row, _ in rows])
    labels = ids.masked_fill(~kept, -100)
    for label, (_, prompt) in zip(labels, rows, strict=True):
        label[:prompt] = -100
    device = input_device(model)
    return model(input_ids=ids.to(device), attention_mask=kept.long().to(device), labels=labels.to(device)).loss
