"""Refusal tuning (Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121).

L = -E_forget[ log p(refusal | x) ] - w E_retain[ log p(y | x) ]
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from benchmarks.baselines.method import Method, Reference, register
from benchmarks.baselines.rows import Batch, TextRow, cross_entropy
from sae_unlearn.errors import UnlearnError


REFUSALS = ("I don't know.", "I'm not sure.", "I have no information about that.", "That is not known to me.")


class RefusalRow(NamedTuple):
    """A question of the forget set with a refusal for an answer."""

    prompt: str
    answer: str


@register("refusal")
def refusal(refusals: Sequence[str] = REFUSALS, retain_weight: float = 1.0) -> Method:
    """Descent on refusals of the forget rows' questions, given in turn, and on the retain rows with weight `w`."""

    def rewrite(rows: Sequence[TextRow]) -> list[TextRow]:
        asked = [row.prompt for row in rows if row.answer]
        if not asked:
            raise UnlearnError("forget: expected questions with answers, got none. There is nothing to refuse.")
        return [RefusalRow(prompt, refusals[i % len(refusals)]) for i, prompt in enumerate(asked)]

    def loss(model: nn.Module, forget: Batch, retain: Batch, reference: Reference) -> Tensor:
        return cross_entropy(model, forget) + retain_weight * cross_entropy(model, retain)

    return Method("refusal", loss, rewrite)
