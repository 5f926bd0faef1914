"""Recall among a closed set of answers, with what the model says of everything taken away."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import filled, is_mine
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import prompt_ids, right_padded
from sae_unlearn.checks import check_all, check_counts, check_tensors
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate


@dataclass(frozen=True)
class Ranks:
    """Where the right answers came among the candidates.

    Attributes:
        ranks: `[n]`, 0 for first.
        recall: share of right answers that came first, with Wilson's interval.
        mean_rank: mean of the ranks; (candidates - 1) / 2 is chance.
    """

    ranks: Tensor
    recall: Estimate
    mean_rank: Estimate


def rank_answers(
    scores: Tensor, right: Sequence[int], priors: Tensor | None = None, subjects: Sequence[str] | None = None
) -> Ranks:
    """Rank each prompt's right answer by its log-probability less the candidate's prior.

        score(x, c) = log p(c | x) - mean_x' log p(c | x')

    Without the subtraction, candidates that the model likes in any case come first in every prompt. Candidates that
    score exactly alike share the middle of their places, so a model that says the same of everything does not excel.

    Args:
        scores: `[n, candidates]`, from `candidate_log_probs`.
        right: index of each prompt's right candidate.
        priors: `[candidates]`, means over many prompts of the same wording in the base model. None takes the mean over
            `scores` itself, which is right only if they are many and their answers various.
        subjects: what each prompt is about, for the interval; None for prompts that are independent.

    Raises:
        UnlearnError: not one place of a candidate for each prompt.
    """
    check_tensors(2, scores=scores)
    places = torch.as_tensor(right, dtype=torch.long)
    if places.shape != scores.shape[:1] or not bool(((places >= 0) & (places < scores.shape[1])).all()):
        raise UnlearnError(
            f"right={list(right)[:8]} for scores of shape {list(scores.shape)}; expected the place of a candidate for "
            "each prompt."
        )
    scores = scores - (scores.mean(dim=0) if priors is None else priors)
    own = scores.gather(1, places[:, None])
    ranks = (scores > own).sum(dim=1).double() + ((scores == own).sum(dim=1) - 1).double() / 2
    first = (ranks == 0).tolist()
    return Ranks(ranks, Estimate.share(first, subjects), Estimate.mean(ranks, subjects=subjects))


@torch.no_grad()
def candidate_log_probs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[str],
    batch_size: int = 32,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Log-probability of each candidate after each prompt, `[prompts, candidates]` float64.

    A candidate counts by its first tokens, as many as it takes to tell it from the others: " Germany" by one, " South
    Korea" and " South Africa" by two. Most cost nothing but the one forward pass of the prompt.

    Args:
        prompts: texts that end where the answer's leading blank begins.
        progress: title of a progress bar; None for no bar.
        shared: share the batches out among the processes of a launch, all of which have to call; see
            `backbone.processes`. Each is given all of the result.

    Raises:
        ValueError: a prompt that ends with a blank, candidates twice, or a candidate that begins with another one.
    """
    check_all(prompts, str, "prompts", least=1)
    check_all(candidates, str, "candidates", least=1)
    check_counts(batch_size=batch_size)
    blank = next((prompt for prompt in prompts if prompt != prompt.rstrip()), None)
    if blank is not None:
        raise ValueError(f"Prompt {blank!r} ends with a blank, which belongs to the answer's first token; strip it.")
    beginnings = _telling_beginnings(_continuations(tokenizer, prompts[0], candidates), candidates)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    found = torch.zeros(len(rows), len(candidates), dtype=torch.float64)
    prefixes = sorted({beginning[:i] for beginning in beginnings for i in range(len(beginning))})
    with tqdm(total=len(rows) * len(prefixes), desc=progress, unit="row", disable=progress is None) as bar:
        for prefix in prefixes:
            following = [
                (c, beginning[len(prefix)])
                for c, beginning in enumerate(beginnings)
                if len(beginning) > len(prefix) and beginning[: len(prefix)] == prefix
            ]
            columns, tokens = (list(part) for part in zip(*following, strict=True))
            for number, start in enumerate(range(0, len(rows), batch_size)):
                if is_mine(number) or not shared:
                    ids, kept = right_padded([row + list(prefix) for row in rows[start : start + batch_size]])
                    last = kept & (kept.long().cumsum(dim=1) == kept.sum(dim=1, keepdim=True))
                    logits = wanted_logits(model, ids, kept, last).log_softmax(dim=-1)[:, tokens]
                    found[start : start + batch_size, columns] += logits.double().cpu()
                bar.update(len(rows[start : start + batch_size]))
    if not shared:
        return found
    return filled(found, [i for i in range(len(rows)) if is_mine(i // batch_size)])


def _continuations(tokenizer: PreTrainedTokenizerBase, prompt: str, candidates: Sequence[str]) -> list[tuple[int, ...]]:
    """Each candidate's tokens, as they follow `prompt`: its last token decides whether a leading blank is a token."""
    before = prompt_ids(tokenizer, prompt)
    found = []
    for candidate in candidates:
        whole = prompt_ids(tokenizer, f"{prompt} {candidate}")
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError(f"Candidate {candidate!r} changes how prompt {prompt!r} is divided; reword it.")
        found.append(tuple(whole[len(before) :]))
    return found


def _telling_beginnings(tokens: list[tuple[int, ...]], candidates: Sequence[str]) -> list[tuple[int, ...]]:
    """The shortest beginning of each candidate that no other candidate has."""
    found = []
    for c, own in enumerate(tokens):
        others = tokens[:c] + tokens[c + 1 :]
        length = next((k for k in range(1, len(own) + 1) if all(o[:k] != own[:k] for o in others)), None)
        if length is None:
            same = candidates[next(i for i, o in enumerate(tokens) if i != c and o[: len(own)] == own)]
            raise ValueError(f"Candidate {candidates[c]!r} is {same!r} or begins it; leave one of them out.")
        found.append(own[:length])
    return found
