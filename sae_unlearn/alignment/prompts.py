"""Entities in their templates, as rows of token ids that end with the entity's name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import key_of
from sae_unlearn.alignment.position import locate_entity
from sae_unlearn.alignment.templates import entity_templates, render


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
    """

    def __init__(
        self,
        types: Sequence[str],
        templates: Mapping[str, Sequence[str]] | None = None,
        held_out: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.types = list(types)
        self.groups: list[tuple[str, str]] = []
        self._of_type: dict[tuple[str, bool], list[int]] = {}
        for kind in self.types:
            for apart, given in ((False, templates), (True, held_out)):
                chosen = entity_templates(kind, given, held_out=apart)
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
