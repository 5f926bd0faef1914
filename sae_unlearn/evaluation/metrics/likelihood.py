"""The probability of whole answers after their prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import filled, is_mine
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import prompt_ids, right_padded


class AnswerLikelihoods(NamedTuple):
    """Of each answer, `[n]`.

    Attributes:
        log_probs: log P(answer | prompt), the sum over its tokens, float64.
        tokens: how many tokens it has.
    """

    log_probs: Tensor
    tokens: Tensor

    @property
    def per_token(self) -> Tensor:
        """log P(answer | prompt)^(1 / tokens), `[n]`."""
        return self.log_probs / self.tokens


@torch.no_grad()
def answer_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int = 8,
    max_length: int = 2048,
    progress: str | None = None,
    shared: bool = False,
) -> AnswerLikelihoods:
    """How likely each answer is after its prompt, with a blank between the two.

        log P(a | q) = sum_t log p(a_t | q, a_<t)

    The answer's tokens are those by which the tokens of "prompt answer" go on after the tokens of the prompt. Where the
    answer changes how the prompt's end is divided, they are those after the last token the two have in common.

    Args:
        model: any causal language model, with or without adapters.
        prompts: texts that end where the answer's leading blank begins.
        answers: one for each prompt.
        batch_size: rows per forward pass; the result does not depend on it, up to rounding.
        max_length: longer rows lose their first tokens.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.

    Raises:
        ValueError: an answer that adds no token to its prompt, or has more than `max_length`.
    """
    rows, tokens = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        before, row = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, f"{prompt} {answer}")
        common = next(
            (i for i, (a, b) in enumerate(zip(before, row, strict=False)) if a != b), min(len(before), len(row))
        )
        if not answer.strip() or len(row) == common:
            raise ValueError(f"Answer {answer!r} to {prompt[-60:]!r} has no token; leave it out.")
        if len(row) - common >= max_length or common == 0:
            raise ValueError(
                f"Answer {answer[:60]!r} to {prompt[-60:]!r} has {len(row) - common} tokens after {common}, with "
                f"max_length={max_length}; raise max_length, or give a prompt."
            )
        rows.append(row[-max_length:])
        tokens.append(len(row) - common)
    log_probs, _ = continuation_likelihoods(model, rows, tokens, batch_size, progress, shared)
    return AnswerLikelihoods(log_probs, torch.tensor(tokens))


@torch.no_grad()
def continuation_likelihoods(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    tokens: Sequence[int],
    batch_size: int = 8,
    progress: str | None = None,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """How likely the last `tokens[i]` ids of each row are after those before them.

    Rows are given to the model whole, their last token included, with a mask at the padding: a guardrail then judges
    what it would judge of that text alone.

    Args:
        shared: as for `answer_likelihoods`.

    Returns:
        The log-probabilities, `[n]` float64, and whether each of the ids is the likeliest at its place, `[n]` bool.
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
