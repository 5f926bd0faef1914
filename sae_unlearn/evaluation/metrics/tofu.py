"""Model utility as TOFU defines it (Maini et al., 2024, arXiv 2401.06121, section 2.2.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import harmonic_mean

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.checks import check_is
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.choices import Choice, option_likelihoods
from sae_unlearn.evaluation.metrics.likelihood import AnswerLikelihoods, answer_likelihoods
from sae_unlearn.evaluation.metrics.recall import Fact, recall
from sae_unlearn.evaluation.metrics.rouge import rouge_l
from sae_unlearn.evaluation.metrics.truth_ratio import log_truth_ratios, truth_scores
from sae_unlearn.evaluation.report.estimate import Estimate
from sae_unlearn.evaluation.report.figure import Figure, figure_of_rows, group_sums, rows_digest
from sae_unlearn.options.evaluation import MeasurementConfig
from sae_unlearn.stats import percentile_interval, ratio_draws


@dataclass(frozen=True)
class TofuSet:
    """The same questions as facts and as choices, in one order.

    Attributes:
        facts (sequence of Fact): From `tofu_facts`, with the true answer.
        choices (sequence of Choice): From `tofu_choices`: the paraphrased true answer (or the true one without a
            paraphrase), and perturbed ones.

    Raises:
        UnlearnError: If they are empty or of different lengths.
    """

    facts: Sequence[Fact]
    choices: Sequence[Choice]

    def __post_init__(self) -> None:
        if not self.facts or len(self.facts) != len(self.choices):
            raise UnlearnError(
                f"choices: expected one for each of {len(self.facts)} facts, got {len(self.choices)}. "
                "Pass the same questions."
            )


@dataclass(frozen=True)
class ModelUtility:
    """TOFU's model utility.

    Attributes:
        utility (Estimate): Harmonic mean of the nine parts, 0 to 1, with the bootstrap interval over questions (over
            authors if they are known). Its n is the number of all of them.
        parts (dict): Probability, ROUGE-L recall and truth score of each set.
    """

    utility: Estimate
    parts: tuple[Figure, ...]


def model_utility(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    retain: TofuSet,
    real_authors: TofuSet,
    world_facts: TofuSet,
    *,
    batch_size: int = MeasurementConfig.batch_size,
    max_new_tokens: int | None = MeasurementConfig.max_new_tokens,
    progress: bool = False,
    seed: int = 0,
) -> ModelUtility:
    """Return the harmonic mean of three measures on three sets.

        retain          mean P(a | q)^(1/|a|),                                    |a| in tokens
        the others      mean P(a | q)^(1/|a|) / sum_{a' in all answers} P(a' | q)^(1/|a'|)
        all             mean ROUGE-L recall of the greedy answer,   mean max(0, 1 - R), R the truth ratio

    As in the authors' published code, probabilities are raised to the power of 1/|a| on all three sets.

    Args:
        model (nn.Module): Any causal language model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        retain (TofuSet): Questions on the fictitious authors that should stay.
        real_authors, world_facts (TofuSet): The subsets of these names.
        batch_size (int, *optional*, defaults to 8): Rows per forward pass. It changes only rounding.
        max_new_tokens (int, *optional*): Tokens of an answer. None takes the length of the longest true answer, at most
            128.
        progress (bool, *optional*, defaults to False): Show progress bars.
        seed (int, *optional*, defaults to 0): Seed of the bootstrap.

    Raises:
        ImportError: If rouge-score is not installed.
    """
    parts: list[Figure] = []
    draws: list[Tensor] = []
    sets = {"retain": retain, "real_authors": real_authors, "world_facts": world_facts}
    for name, questions in sets.items():
        check_is(questions, TofuSet, name)
    for number, (name, questions) in enumerate(sets.items()):
        bar = f"{name}: %s" if progress else None
        options = option_likelihoods(
            model, tokenizer, questions.choices, batch_size=batch_size, progress=bar and bar % "options"
        )
        if name == "retain":
            prompts, answers = zip(*((fact.prompt, fact.answers[0]) for fact in questions.facts), strict=True)
            title = bar and bar % "answers"
            likelihoods = answer_likelihoods(model, tokenizer, prompts, answers, batch_size=batch_size, progress=title)
            probability = likelihoods.per_token.exp()
        else:
            probability = _shares(questions.choices, options)
        said = recall(
            model,
            tokenizer,
            questions.facts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=bar and bar % "recall",
        )
        measures: dict[str, Tensor] = {
            "probability": probability,
            "rouge_l_recall": rouge_l(said).recall,
            "truth_score": truth_scores(log_truth_ratios(questions.choices, options)),
        }
        rows = rows_digest([[fact.prompt, fact.answers] for fact in questions.facts])
        subjects = [fact.subject for fact in questions.facts]
        for metric, values in measures.items():
            part = figure_of_rows("retain", name, metric, "score", values, subjects, rows)
            parts.append(part)
            draws.append(
                ratio_draws(*group_sums(part), seed=seed + number)
            )  # the three parts of a set share their draws
    drawn = len(parts) / (1 / torch.stack(draws)).sum(dim=0)  # 0 if a part is 0
    low, high = percentile_interval(drawn)
    number = sum(part.estimate.n for part in parts[::3])
    value = harmonic_mean([part.estimate.value for part in parts])
    return ModelUtility(Estimate(value, low, high, number), tuple(parts))


def _shares(choices: Sequence[Choice], likelihoods: Sequence[AnswerLikelihoods]) -> Tensor:
    """Share of the true answer in the probability of all answers, `[n]`."""
    pairs = zip(choices, likelihoods, strict=True)
    return torch.stack([found.per_token.softmax(dim=0)[choice.right] for choice, found in pairs])
