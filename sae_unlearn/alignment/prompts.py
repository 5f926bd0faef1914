"""Entities in their templates, as rows of token ids that end with the entity's name.

Which token is the last of an entity's name.

There the model's knowledge of the entity is read and moved (Ferrando et al., arXiv 2411.14257). The place comes from
the characters of the name in the text and the tokenizer's own offsets, never from a search for the name's tokens: how a
name is divided depends on what stands around it, and "York" stands in "New York" too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.entities import EntitySet, key_of
from sae_unlearn.alignment.templates import Prompt, entity_templates, render
from sae_unlearn.errors import AlignmentError


# Private-use characters, which no template trims or escapes, and no text holds
_SENTINEL = "\ue0a5\ue0b6\ue0c7"


class EntityTokens(NamedTuple):
    """A prompt as token ids, special tokens included, and the index among them of the name's last token."""

    input_ids: list[int]
    position: int


def locate_entity(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat_template: bool = False, cut: bool = True
) -> EntityTokens:
    """Tokenise a prompt and find the last token of its entity's name.

    Args:
        tokenizer: a fast one, since only those tell the characters of each token.
        prompt: what `render` gives.
        chat_template: put the text as a user's turn into the tokenizer's chat template, and find the name there.
        cut: leave out what comes after the name's last token: a causal model's activations there cannot depend on it.
            `position` is then the row's last index.

    Raises:
        AlignmentError: a slow tokenizer; a name whose last token also holds what follows it; a name that the tokenizer
            drops; a chat template that is missing or changes the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise AlignmentError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so it does not tell which characters a token "
            "stands for; load one with `AutoTokenizer.from_pretrained(..., use_fast=True)`."
        )
    text, start, end = in_chat(tokenizer, prompt) if chat_template else prompt
    encoded = tokenizer(text, add_special_tokens=not chat_template, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    # (0, 0) is a special token; a token of the name covers at least one of its characters
    of_name = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    if not of_name:
        raise AlignmentError(f"The tokenizer has no token for the name {prompt.name!r} in {prompt.text!r}.")
    position = of_name[-1]
    last = offsets[position][1]
    if last > end:
        token = text[offsets[position][0] : last]
        raise AlignmentError(
            f"The last token of the name {prompt.name!r} in {prompt.text!r} is {token!r}, which also holds the "
            f"{text[end:last]!r} that follows; let the template end with the name, or put a space after it."
        )
    return EntityTokens(list(ids[: position + 1] if cut else ids), position)


def in_chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Prompt:
    """The prompt as a user's turn in the tokenizer's chat template, up to where the model's answer begins.

    Where the text goes is found by rendering a stand-in for it, so that a template which says the same words elsewhere
    is no danger.

    Raises:
        AlignmentError: no chat template, or one that holds the turn not exactly once, or changes it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise AlignmentError("chat_template=True, but this tokenizer has no chat template; leave it out.")
    before, *after = _rendered(tokenizer, _SENTINEL).split(_SENTINEL)
    if len(after) != 1:
        raise AlignmentError(
            f"The tokenizer's chat template holds the user's text {len(after)} times; expected once, so that the "
            "name's place is known. Pass prompts as plain text (chat_template=False)."
        )
    rendered = _rendered(tokenizer, prompt.text)
    if rendered != before + prompt.text + after[0]:
        raise AlignmentError(
            f"The tokenizer's chat template changes the text {prompt.text!r} (rendered: {rendered!r}), so the name's "
            "place is not known; take blanks off the template's ends, or pass plain text (chat_template=False)."
        )
    return Prompt(rendered, len(before) + prompt.start, len(before) + prompt.end)


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


class PromptRow(NamedTuple):
    """An entity in a template, cut after the last token of its name: a causal model cannot look further.

    Attributes:
        input_ids: the row; its last token is the one that is read.
        entity: the entity's place in its set.
        group: number of the (type, template).
    """

    input_ids: list[int]
    entity: int
    group: int


class TemplateGroups:
    """Numbers for (entity type, template), those for training and those held out for evaluation.

    Args:
        types: entity types.
        templates, held_out: templates per type; None, or a type that is not in it, takes the package's.
        questions: forms of questions per type, which join the templates to train on. What stands behind the name does
            not change the state there, so a form is left out that begins as a template does.
    """

    def __init__(
        self,
        types: Sequence[str],
        templates: Mapping[str, Sequence[str]] | None = None,
        held_out: Mapping[str, Sequence[str]] | None = None,
        questions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.types = list(types)
        self.groups: list[tuple[str, str]] = []
        self._of_type: dict[tuple[str, bool], list[int]] = {}
        for kind in self.types:
            for apart, given in ((False, templates), (True, held_out)):
                chosen = list(entity_templates(kind, given, held_out=apart))
                for form in () if apart else (questions or {}).get(kind, ()):
                    if not any(_before_name(form) == _before_name(other) for other in chosen):
                        chosen.append(form)
                start = len(self.groups)
                self.groups += [(kind, template) for template in chosen]
                self._of_type[key_of(kind), apart] = list(range(start, len(self.groups)))

    def __len__(self) -> int:
        return len(self.groups)

    def __contains__(self, kind: str) -> bool:
        """Whether there are templates of a type."""
        return (key_of(kind), False) in self._of_type

    def of_type(self, kind: str, held_out: bool = False) -> list[int]:
        """The numbers of a type's templates; types are compared without case."""
        return self._of_type[key_of(kind), held_out]

    def types_of_groups(self) -> list[int]:
        """For every group the number of its type."""
        return [self.types.index(kind) for kind, _ in self.groups]


def _before_name(template: str) -> str:
    return template.partition("{entity}")[0]


def prompt_rows(
    entities: EntitySet,
    tokenizer: PreTrainedTokenizerBase,
    groups: TemplateGroups,
    held_out: bool = False,
    chat_template: bool = False,
) -> list[PromptRow]:
    """Every entity in every template of its type.

    Raises:
        AlignmentError: the last token of a name cannot be told from the text around it.
    """
    rows = []
    for number, entity in enumerate(entities):
        for group in groups.of_type(entity.entity_type, held_out):
            prompt = render(groups.groups[group][1], entity)
            rows.append(PromptRow(locate_entity(tokenizer, prompt, chat_template).input_ids, number, group))
    return rows
