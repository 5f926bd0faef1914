"""Equal damage for all: of every method the last state whose damage to other text is within one budget."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import TrainerCallback

from benchmarks.baselines.rows import Batch, scored_logits
from sae_unlearn.errors import UnlearnError


class DamageBudget:
    """To be called as `on_step`: measures damage every few steps and keeps the last adapter within the budget.

        damage = mean over scored tokens of KL(base || tuned), nats per token

    Args:
        model: with its adapter, whose base is measured now.
        batches: validation rows, of which no method has trained on any.
        budget: in nats per token.
        every: steps between two measurements.
        give_up: end the training once the damage exceeds this multiple of the budget at two measurements in a row.

    Attributes:
        step: of the state that is kept; None while no state was within the budget.
        damage: of that state.
        curve: (step, damage) of every measurement.
    """

    def __init__(
        self, model: PeftModel, batches: list[Batch], budget: float, every: int = 10, give_up: float = 5.0
    ) -> None:
        self.batches, self.budget, self.every, self.give_up = batches, budget, every, give_up
        with model.disable_adapter():
            self._base = self._predictions(model)
        self.step: int | None = None
        self.damage = float("nan")
        self.curve: list[tuple[int, float]] = []
        self._state: dict[str, Tensor] = {}

    def __call__(self, step: int, model: PeftModel) -> bool:
        """Whether to end the training."""
        if step % self.every:
            return False
        damage = self.measure(model)
        self.curve.append((step, damage))
        if damage <= self.budget:
            self.step, self.damage = step, damage
            self._state = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
        return len(self.curve) > 1 and all(d > self.give_up * self.budget for _, d in self.curve[-2:])

    def measure(self, model: PeftModel) -> float:
        """The damage now."""
        total, count = 0.0, 0
        for base, tuned in zip(self._base, self._predictions(model), strict=True):
            total += torch.nn.functional.kl_div(tuned, base, reduction="sum", log_target=True).item()
            count += len(base)
        return total / count

    def restore(self, model: PeftModel) -> None:
        """Put the kept state back into the model's adapter.

        Raises:
            UnlearnError: no state was within the budget.
        """
        if self.step is None:
            raise UnlearnError(f"budget={self.budget:g}: expected a state within it, got {self.curve} nats per token.")
        set_peft_model_state_dict(model, self._state)

    @torch.no_grad()
    def _predictions(self, model: PeftModel) -> list[Tensor]:
        training = model.training
        model.eval()
        found = [scored_logits(model, batch).log_softmax(dim=-1) for batch in self.batches]
        model.train(training)
        return found


class BudgetCallback(TrainerCallback):
    """Shows the model of a `Trainer` to a budget after every step, and stops where the budget says so."""

    def __init__(self, budget: DamageBudget) -> None:
        self.budget = budget

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.budget(state.global_step, model):
            control.should_training_stop = True
