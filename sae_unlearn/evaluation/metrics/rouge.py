"""ROUGE-L of completions against the accepted answers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_unlearn.checks import check_all
from sae_unlearn.evaluation.metrics.recall import Recall
from sae_unlearn.install import install_command


class RougeL(NamedTuple):
    """Scores of completions against the accepted answer with the highest score, `[n]` float64.

    Attributes:
        recall (Tensor): LCS / words of the answer, as TOFU and RWKU report it. Further text of the completion does not
            lower it.
        f1 (Tensor): Harmonic mean of that and of LCS / words of the completion, as MUSE reports it.
    """

    recall: Tensor
    f1: Tensor


def rouge_l(found: Sequence[Recall]) -> RougeL:
    """Return ROUGE-L by the longest common subsequence of words (C.-Y. Lin, 2004).

    Words are stemmed, and consist of Latin letters and digits. Answers in other scripts get 0.

    Args:
        found (sequence of Recall): From `recall`.

    Raises:
        ImportError: If rouge-score is not installed.
        UnlearnError: If an item is not a `Recall`.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"ROUGE-L needs rouge-score; run: {install_command('eval')}") from error
    check_all(found, Recall, "found")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [[scorer.score(answer, one.completion)["rougeL"] for answer in one.fact.answers] for one in found]
    return RougeL(
        torch.tensor([max(score.recall for score in each) for each in scores], dtype=torch.float64),
        torch.tensor([max(score.fmeasure for score in each) for each in scores], dtype=torch.float64),
    )
