"""Early stopping when the predictions on retain rows have changed too much."""

import logging

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sae_unlearn.errors import AlignmentError


logger = logging.getLogger(__name__)


class RetainBudgetCallback(TrainerCallback):
    """Stops training when `eval_kl`, in nats per token of held-out retain rows, exceeds a budget.

    With `load_best_model_at_end=True, metric_for_best_model="budget_loss"` the model with the smallest loss within the
    budget is kept.

    Args:
        budget (float): Budget in nats per token.

    Raises:
        AlignmentError: At the start, if training would end before the first evaluation; at an evaluation without
            `eval_kl`.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise if training would end before the first evaluation."""
        by_step = args.eval_strategy == "steps"
        end = state.max_steps if by_step else state.num_train_epochs
        if args.eval_delay > end:
            raise AlignmentError(
                f"eval_delay={args.eval_delay:g}: expected at most {end} {'steps' if by_step else 'epochs'}, or "
                f"retain_budget={self.budget:g} is never measured. Set a smaller one."
            )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Stop training if `eval_kl` exceeds the budget."""
        if not metrics or "eval_loss" not in metrics:
            return  # an evaluation of other entities, under another prefix
        kl = metrics.get("eval_kl")
        if kl is None:
            raise AlignmentError(
                f"retain_budget={self.budget:g}: expected eval_kl, got an evaluation whose retain rows have no token "
                "to compare. Pass longer retain text."
            )
        if kl > self.budget:
            step = state.global_step
            logger.warning("eval_kl=%.4g exceeds retain_budget=%.4g: stopping at step %d.", kl, self.budget, step)
            control.should_training_stop = True
