"""Recall among a closed set of answers, corrected for the model's prior for each answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.distributed import filled, is_mine
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import prompt_ids, right_padded
from sae_unlearn.checks import check_all, check_counts
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.options.evaluation import MeasurementConfig
from sae_unlearn.tensor_checks import check_tensors


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers among the candidates.

    Attributes:
        ranks (Tensor): `[n]`, 0 for first.
        recall (Estimate): Share of right answers with rank 0, with Wilson's interval.
        mean_rank (Estimate): Mean of the ranks. Chance is (candidates - 1) / 2.
    """

    ranks: Tensor
    recall: Estimate
    mean_rank: Estimate


def rank_answers(
    scores: Tensor, right: Sequence[int], *, priors: Tensor | None = None, subjects: Sequence[str] | None = None
) -> Ranks:
    """Rank each prompt's right answer by its log-probability minus the candidate's prior.

        score(x, c) = log p(c | x) - mean_x' log p(c | x')

    Without the prior, candidates that the model prefers anyway come first in every prompt. Candidates with equal scores
    share the middle of their ranks, so a model that gives all of them the same score is at chance.

    Args:
        scores (Tensor): `[n, candidates]`, from `candidate_log_probs`.
        right (sequence of int): Index of each prompt's right candidate.
        priors (Tensor, *optional*): `[candidates]`, means over many prompts of the same wording in the base model. None
            takes the mean over `scores`, which needs many prompts with different answers.
        subjects (sequence of str, *optional*): Subject of each prompt, for the interval. None for independent prompts.

    Returns:
        Ranks: The ranks, and what they sum up to.

    Raises:
        UnlearnError: If `right` is not one candidate index for each prompt.
    """
    check_tensors(2, scores=scores)
    places = torch.as_tensor(right, dtype=torch.long)
    if places.shape != scores.shape[:1] or not bool(((places >= 0) & (places < scores.shape[1])).all()):
        raise UnlearnError(
            f"right={list(right)[:8]}: expected the index of a candidate for each prompt, with scores of shape "
            f"{list(scores.shape)}."
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
    *,
    batch_size: int = MeasurementConfig.batch_size,
    progress: str | None = None,
    shared: bool = False,
) -> Tensor:
    """Return the log-probability of each candidate after each prompt, in nats.

    A candidate counts by its shortest beginning that distinguishes it: " Germany" by one token, " South Korea" and
    " South Africa" by two. Most candidates need only the forward pass of the prompt.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        prompts (sequence of str): Texts that end before the answer's leading blank.
        candidates (sequence of str): Different answers.
        batch_size (int, *optional*, defaults to 8): Rows per forward pass. It changes only rounding.
        progress (str, *optional*): Title of a progress bar. None shows no bar.
        shared (bool, *optional*, defaults to False): Share the batches among the processes of a launch. Every process
            must call, and receives the whole result.

    Returns:
        Tensor: `[prompts, candidates]` float64.

    Raises:
        UnlearnError: If a prompt ends with a blank, a candidate occurs twice, or a candidate begins with another one.
    """
    check_all(prompts, str, "prompts", least=1)
    check_all(candidates, str, "candidates", least=1)
    check_counts(batch_size=batch_size)
    blank = next((prompt for prompt in prompts if prompt != prompt.rstrip()), None)
    if blank is not None:
        raise UnlearnError(
            f"prompts={blank!r}: expected no blank at the end, which belongs to the answer's first token. Strip it."
        )
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
    """Tokens of each candidate as they follow `prompt`.

    The prompt's last token decides whether a leading blank is a token of its own.
    """
    before = prompt_ids(tokenizer, prompt)
    found = []
    for candidate in candidates:
        whole = prompt_ids(tokenizer, f"{prompt} {candidate}")
        if whole[: len(before)] != before or len(whole) == len(before):
            raise UnlearnError(
                f"candidates={candidate!r}: expected the tokens of prompt {prompt!r} unchanged before it. Reword it."
            )
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
            raise UnlearnError(
                f"candidates={candidates[c]!r}: expected no candidate that equals or begins {same!r}. Omit one of them."
            )
        found.append(own[:length])
    return found
