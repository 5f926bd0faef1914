"""Prompts: entities in their templates, as rows of token ids that end with the entity's name.

At the last token of the name the model's knowledge of the entity is read and moved (Ferrando et al., arXiv 2411.14257).
The place comes from the characters of the name in the text and the tokenizer's own offsets, not from a search for the
name's tokens: the tokens of a name depend on its context, and "York" is also in "New York".
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import key_of
from sae_unlearn.alignment.templates import Prompt, entity_templates, render
from sae_unlearn.errors import AlignmentError


# Private-use characters, which templates neither trim nor escape, and texts do not contain
_SENTINEL = "\ue0a5\ue0b6\ue0c7"


class EntityTokens(NamedTuple):
    """Token ids of a prompt, special tokens included, and the index of the last token of the name."""

    input_ids: list[int]
    position: int


def locate_entity(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat_template: bool = False, cut: bool = True
) -> EntityTokens:
    """Tokenize a prompt and return its ids with the last token of its entity's name.

    Args:
        tokenizer (PreTrainedTokenizerFast): A fast one, since only those give the characters of each token.
        prompt (Prompt): From `render`.
        chat_template (bool, *optional*, defaults to False): Put the text as a user turn into the tokenizer's chat
            template.
        cut (bool, *optional*, defaults to True): Omit the tokens after the name, on which a causal model's activations
            at the name cannot depend. `position` is then the row's last index.

    Raises:
        AlignmentError: If the tokenizer is slow, drops the name, or ends the name with a token that also covers the
            following text; or the chat template is missing or changes the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise AlignmentError(
            "tokenizer: expected a fast one, which gives each token's characters, "
            f"got {type(tokenizer).__name__}. Load it "
            "with `AutoTokenizer.from_pretrained(..., use_fast=True)`."
        )
    text, start, end = in_chat(tokenizer, prompt) if chat_template else prompt
    encoded = tokenizer(text, add_special_tokens=not chat_template, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    # (0, 0) is a special token; a token of the name covers at least one of its characters
    of_name = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    if not of_name:
        raise AlignmentError(f"entity={prompt.name!r}: expected a token of the name in {prompt.text!r}, got none.")
    position = of_name[-1]
    last = offsets[position][1]
    if last > end:
        token = text[offsets[position][0] : last]
        raise AlignmentError(
            f"entity={prompt.name!r}: expected its last token to end with it in {prompt.text!r}, got {token!r} with "
            f"{text[end:last]!r}. End the template with the name, or add a space."
        )
    return EntityTokens(list(ids[: position + 1] if cut else ids), position)


def in_chat(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Prompt:
    """Return the prompt as a user turn in the tokenizer's chat template.

    The turn ends where the answer begins. The place of the text is found by rendering a placeholder, since a template
    may contain the same words elsewhere.

    Raises:
        AlignmentError: If the tokenizer has no chat template, or one that does not contain the turn exactly once and
            unchanged.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise AlignmentError("chat_template=True: expected a tokenizer with a chat template. Set it to False.")
    before, *after = _rendered(tokenizer, _SENTINEL).split(_SENTINEL)
    if len(after) != 1:
        raise AlignmentError(
            f"chat_template=True: expected the text once in the rendered turn, got it {len(after)} times. "
            "Set it to False."
        )
    rendered = _rendered(tokenizer, prompt.text)
    if rendered != before + prompt.text + after[0]:
        raise AlignmentError(
            f"chat_template=True: expected {prompt.text!r} unchanged in the turn, got {rendered!r}. "
            "Remove blanks at the "
            "template's ends, or set it to False."
        )
    return Prompt(rendered, len(before) + prompt.start, len(before) + prompt.end)


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


class PromptRow(NamedTuple):
    """An entity in a template, cut after the last token of its name.

    Attributes:
        input_ids (list of int): The row. Its last token is the one that is read.
        entity (int): Index of the entity in its set.
        group (int): Number of the (type, template).
    """

    input_ids: list[int]
    entity: int
    group: int


class TemplateGroups:
    """Numbers for (entity type, template), of training and of evaluation.

    Args:
        types (sequence of str): Entity types.
        templates, held_out (mapping, *optional*): Templates per type. None, or a missing type, takes the package's.
        questions (mapping, *optional*): Forms of questions per type, which join the training templates. The text after
            the name does not change the state there, so a form that begins as a template does is left out.
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
        """Return True if a type has templates."""
        return (key_of(kind), False) in self._of_type

    def of_type(self, kind: str, held_out: bool = False) -> list[int]:
        """Return the numbers of a type's templates. Types are compared without case."""
        return self._of_type[key_of(kind), held_out]

    def types_of_groups(self) -> list[int]:
        """Return the number of each group's type."""
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
    """Return every entity in every template of its type.

    Raises:
        AlignmentError: If the last token of a name also covers other text.
    """
    rows = []
    for number, entity in enumerate(entities):
        for group in groups.of_type(entity.entity_type, held_out):
            prompt = render(groups.groups[group][1], entity)
            rows.append(PromptRow(locate_entity(tokenizer, prompt, chat_template).input_ids, number, group))
    return rows
