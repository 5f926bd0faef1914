"""The damage budget of `baselines` in the measure that guardrails are held to: the change of loss on other text."""

import time
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.baselines import Batch, DamageBudget, encode
from benchmarks.baselines.rows import TextRow, log_likelihood
from benchmarks.forget.choice import Candidate


class LossBudget(DamageBudget):
    """Keeps the last adapter within the budget, as its parent does.

        damage = mean over other texts of loss(tuned) - loss(base), nats per token

    Args:
        forget: validation texts of the topic, on which nothing is trained either.

    Attributes:
        candidates: of every look, the step being the strength.
        seconds, cpu_seconds: spent looking.
    """

    def __init__(
        self,
        model: PeftModel,
        batches: list[Batch],
        forget: list[Batch],
        budget: float,
        every: int,
        give_up: float = 3.0,
    ) -> None:
        super().__init__(model, batches, budget, every, give_up)
        self.forget = forget
        with model.disable_adapter():
            self._forget_base = row_means(model, forget)
        self.candidates: list[Candidate] = []
        self.seconds = self.cpu_seconds = 0.0

    def __call__(self, step: int, model: PeftModel) -> bool:
        """Whether to end the training."""
        if step % self.every:
            return False
        start, cpu = time.monotonic(), time.process_time()
        over = super().__call__(step, model)
        forgotten = float((row_means(model, self.forget) - self._forget_base).mean())
        self.candidates.append(Candidate(step, forgotten, self.curve[-1][1]))
        self.seconds += time.monotonic() - start
        self.cpu_seconds += time.process_time() - cpu
        return over

    def measure(self, model: PeftModel) -> float:
        """The damage now."""
        return float((torch.cat(self._predictions(model)) - torch.cat(self._base)).mean())

    def _predictions(self, model: PeftModel) -> list[Tensor]:
        return [row_means(model, [batch]) for batch in self.batches]


def content_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TextRow], max_length: int) -> Batch:
    """`encode`, but special tokens in the text (WikiText's `<unk>` is one to some tokenizers) are not scored, as
    `row_losses` does not score them."""
    batch = encode(tokenizer, rows, max_length)
    following = torch.zeros_like(batch.predicts)
    following[:, :-1] = ~torch.isin(batch.ids[:, 1:], torch.tensor(tokenizer.all_special_ids))
    return batch._replace(predicts=batch.predicts & following)


@torch.no_grad()
def row_means(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Mean loss of each row, nats per scored token, `[rows]`."""
    training = model.training
    model.eval()
    found = [-log_likelihood(model, batch).cpu() / batch.predicts.sum(dim=1) for batch in batches]
    model.train(training)
    return torch.cat(found).double()
