"""ROUGE-L of completions against accepted answers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.checks import check_all
from sae_unlearn.evaluation.metrics.recall import Recall


class RougeL(NamedTuple):
    """Of each completion, `[n]` float64, against the accepted answer it fits best.

    Attributes:
        recall: LCS / words of the answer, as TOFU and RWKU report it. What a completion goes on to say does not lower
            it.
        f1: the harmonic mean of that and of LCS / words of the completion, as MUSE reports it.
    """

    recall: Tensor
    f1: Tensor


def rouge_l(found: Sequence[Recall]) -> RougeL:
    """ROUGE-L by the longest common subsequence of words (C.-Y. Lin, 2004).

    Words are stemmed, and made of Latin letters and digits: answers in other scripts get 0.

    Raises:
        ImportError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError('ROUGE-L needs rouge-score; run: pip install "sae-unlearn[eval]"') from error
    check_all(found, Recall, "found")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [[scorer.score(answer, one.completion)["rougeL"] for answer in one.fact.answers] for one in found]
    return RougeL(
        torch.tensor([max(score.recall for score in each) for each in scores], dtype=torch.float64),
        torch.tensor([max(score.fmeasure for score in each) for each in scores], dtype=torch.float64),
    )
