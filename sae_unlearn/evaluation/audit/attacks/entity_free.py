"""Attack: reach the fact without naming the entity.

An alignment adapter works where the entity's name is read. A prompt that leads to the fact from another side ("The
capital of France is") never passes there, and so this is the leak to expect first.

Budget: black box, one greedy completion per prompt.
"""

import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.evaluation.metrics.recall import AnswerCounts, Fact, ask


def entity_free_recall(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    names: Iterable[str],
    max_new_tokens: int = 8,
    batch_size: int = 16,
) -> AnswerCounts:
    """Complete prompts that lead to forgotten facts and name none of the forgotten entities.

    What to compare it with is the same prompts on the base model: only what the base completes rightly can leak. The
    completion is greedy, so there is no seed.

    Args:
        model: the tuned model.
        facts: prompts, and answers that give the fact away, the entity's own name included where that is the answer.
        names: names and aliases of all forgotten entities.

    Raises:
        ValueError: a prompt names one of them.
    """
    named = naming_prompts((fact.prompt for fact in facts), names)
    if named:
        prompt, name = named[0]
        raise ValueError(f"Prompt {prompt!r} names {name!r}, which is forgotten; {len(named)} prompts to leave out.")
    return ask(model, tokenizer, facts, max_new_tokens, batch_size)


def naming_prompts(prompts: Iterable[str], names: Iterable[str]) -> list[tuple[str, str]]:
    """The prompts that name one of `names` as whole words, whatever the case, each with the first name it has."""
    patterns = [(name, re.compile(rf"(?<!\w){re.escape(name.casefold())}(?!\w)")) for name in names]
    found = ((p, next((n for n, pattern in patterns if pattern.search(p.casefold())), None)) for p in prompts)
    return [(prompt, name) for prompt, name in found if name is not None]
