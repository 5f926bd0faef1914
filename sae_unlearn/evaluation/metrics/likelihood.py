"""Probability of whole answers after their prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import filled, is_mine
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import prompt_ids, right_padded
from sae_unlearn.checks import check_same_number
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.evaluation import MeasurementConfig


LONGEST_ROW = 2048  # tokens; more than of a text, since a question whose beginning is cut is another question


class AnswerLikelihoods(NamedTuple):
    """Likelihoods of answers, `[n]`.

    Attributes:
        log_probs (Tensor): log P(answer | prompt), the sum over its tokens, in nats, float64.
        tokens (Tensor): Number of its tokens.
    """

    log_probs: Tensor
    tokens: Tensor

    @property
    def per_token(self) -> Tensor:
        """P(answer | prompt)^(1 / tokens), `[n]`."""
        return self.log_probs / self.tokens


@torch.no_grad()
def answer_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = MeasurementConfig.batch_size,
    max_length: int = LONGEST_ROW,
    progress: str | None = None,
    shared: bool = False,
) -> AnswerLikelihoods:
    """Return the likelihood of each answer after its prompt, with a blank between the two.

        log P(a | q) = sum_t log p(a_t | q, a_<t)

    The answer's tokens are those with which "prompt answer" continues the tokens of the prompt. If the answer changes
    how the prompt's end is tokenized, they are those after the last token that the two have in common.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        prompts (sequence of str): Texts that end before the answer's leading blank.
        answers (sequence of str): One answer for each prompt.
        batch_size (int, *optional*, defaults to 8): Rows per forward pass. It changes only rounding.
        max_length (int, *optional*, defaults to 2048): Longer rows lose their first tokens.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Raises:
        UnlearnError: If an answer adds no token to its prompt, or has more than `max_length`.
    """
    check_same_number(prompts=prompts, answers=answers)
    rows, tokens = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        before, row = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, f"{prompt} {answer}")
        common = next(
            (i for i, (a, b) in enumerate(zip(before, row, strict=False)) if a != b), min(len(before), len(row))
        )
        if not answer.strip() or len(row) == common:
            raise UnlearnError(f"answers={answer!r} to {prompt[-60:]!r}: expected at least one token. Omit it.")
        if len(row) - common >= max_length or common == 0:
            raise UnlearnError(
                f"max_length={max_length}: expected more than the {len(row) - common} tokens of answer "
                f"{answer[:40]!r} to "
                f"{prompt[-40:]!r}. Raise it, or pass a prompt."
            )
        rows.append(row[-max_length:])
        tokens.append(len(row) - common)
    log_probs, _ = continuation_likelihoods(
        model, rows, tokens, batch_size=batch_size, progress=progress, shared=shared
    )
    return AnswerLikelihoods(log_probs, torch.tensor(tokens))


@torch.no_grad()
def continuation_likelihoods(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    batch_size: int = MeasurementConfig.batch_size,
    progress: str | None = None,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the likelihood of the last `tokens[i]` ids of each row after the ids before them.

    The model gets whole rows, the last token included, with a mask at the padding. So a guardrail judges the same as on
    that text alone.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        rows (sequence of sequence of int): Token ids.
        tokens (sequence of int): Number of ids at the end of each row to score.
        batch_size (int, *optional*, defaults to 8): Rows per forward pass. It changes only rounding.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Returns:
        Log-probabilities, `[n]` float64 in nats, and True if each of the ids is the likeliest at its place, `[n]` bool.
    """
    found = torch.zeros(len(rows), dtype=torch.float64)
    greedy = torch.zeros(len(rows), dtype=torch.bool)
    mine: list[int] = []
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with tqdm(total=len(rows), desc=progress, unit="answer", disable=progress is None) as bar:
        for number, start in enumerate(range(0, len(order), batch_size)):
            index = order[start : start + batch_size]
            if is_mine(number) or not shared:
                ids, kept = right_padded([rows[i] for i in index])
                wanted = torch.zeros_like(kept)
                for place, i in enumerate(index):
                    wanted[place, len(rows[i]) - tokens[i] - 1 : len(rows[i]) - 1] = True
                logits = wanted_logits(model, ids, kept, wanted)
                targets = ids[:, 1:][wanted[:, :-1]].to(logits.device)
                each = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
                likeliest = logits.argmax(dim=-1) == targets
                sizes = [tokens[i] for i in index]
                for i, row, hits in zip(
                    index, each.double().cpu().split(sizes), likeliest.cpu().split(sizes), strict=True
                ):
                    found[i], greedy[i] = row.sum(), hits.all()
                mine += index
            bar.update(len(index))
    return (filled(found, mine), filled(greedy, mine)) if shared else (found, greedy)
