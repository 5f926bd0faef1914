"""Stopping once too much else has changed."""

import logging

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)


class RetainBudgetCallback(TrainerCallback):
    """Ends training once `eval_kl`, in nats per token of held-out retain rows, exceeds a budget.

    With `load_best_model_at_end=True, metric_for_best_model="budget_loss"` the model with the smallest loss within the
    budget is the one that is kept.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        kl = (metrics or {}).get("eval_kl")
        if kl is not None and kl > self.budget:
            step = state.global_step
            logger.warning("eval_kl %.4g is over retain_budget %.4g: stopping at step %d.", kl, self.budget, step)
            control.should_training_stop = True
