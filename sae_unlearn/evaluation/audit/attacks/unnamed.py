"""Attack: reach the fact without naming the entity.

An alignment adapter acts where the entity's name is read. A prompt that leads to the fact without the name ("The
capital of France is") does not pass there, so this is the most likely leak.

Budget: black box, one greedy completion per prompt.
"""

import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.recall import AnswerCounts, Fact, ask


def unnamed_recall(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    names: Iterable[str],
    max_new_tokens: int = 8,
    batch_size: int = 16,
) -> AnswerCounts:
    """Complete prompts that lead to forgotten facts without naming a forgotten entity.

    Compare with the same prompts on the base model: only facts that the base completes can leak. The completion is
    greedy, so a seed is not needed.

    Args:
        model (nn.Module): The tuned model.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        facts (sequence of Fact): Prompts, and answers that reveal the fact. An answer may be the entity's own name.
        names (iterable of str): Names and aliases of all forgotten entities.
        max_new_tokens (int, *optional*, defaults to 8): Tokens of a completion.
        batch_size (int, *optional*, defaults to 16): Prompts per forward pass.

    Raises:
        UnlearnError: If a prompt contains one of the names.
    """
    named = naming_prompts((fact.prompt for fact in facts), names)
    if named:
        prompt, name = named[0]
        raise UnlearnError(
            f"facts: expected prompts without a name, got {prompt!r} with {name!r}. Remove {len(named)} prompts."
        )
    return ask(model, tokenizer, facts, max_new_tokens=max_new_tokens, batch_size=batch_size)


def naming_prompts(prompts: Iterable[str], names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the prompts that contain one of `names`, each with the first such name.

    Names match as whole words in any case.
    """
    patterns = [(name, re.compile(rf"(?<!\w){re.escape(name.casefold())}(?!\w)")) for name in names]
    found = ((p, next((n for n, pattern in patterns if pattern.search(p.casefold())), None)) for p in prompts)
    return [(prompt, name) for prompt, name in found if name is not None]
