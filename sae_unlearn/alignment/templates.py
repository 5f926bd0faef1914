"""Prompts about entities: templates with a name, and questions for attributes.

A template is a Python format string with `{entity}` exactly once and, optionally, `{entity_type}`. In an entity
template only the text before the name can change the activation at the name's last token. Questions end before the
answer, without a blank, which most tokenizers take as part of the answer's first token.
"""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import NamedTuple

from sae_unlearn.alignment.entity import Entity
from sae_unlearn.errors import AlignmentError


ENTITY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "player": ("The player {entity}", "I watched a match with {entity}", "The sports reporter asked {entity}"),
    "movie": ("The movie {entity}", "Last night we watched {entity}", "The critics wrote about the film {entity}"),
    "city": (
        "The city {entity}",
        "They travelled to {entity}",
        "The mayor of {entity}",
        "We live in the town of {entity}",
    ),
    "song": ("The song {entity}", "The radio was playing {entity}", "She sang along to {entity}"),
    "person": ("The person {entity}", "This is a biography of {entity}", "I have read about {entity}"),
    "country": ("The country {entity}", "They travelled across {entity}", "The government of {entity}"),
    "book": ("The book {entity}", "I have just read {entity}", "The library has a copy of {entity}"),
    "company": ("The company {entity}", "She works for {entity}", "The shares of {entity}"),
}
"""Training templates by type. Other types get `GENERIC_TEMPLATES`."""

# words: data
HELD_OUT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "player": ("Fans were waiting for {entity}", "In an interview about {entity}"),
    "movie": ("A new poster for {entity}", "My favourite scene is from {entity}"),
    "city": ("The next train leaves for {entity}", "Here is a map of {entity}"),
    "song": ("The band ended the concert with {entity}", "Here are the lyrics of {entity}"),
    "person": ("Yesterday there was a letter from {entity}", "Here is a portrait of {entity}"),
    "country": ("Here is a map of {entity}", "The next flight goes to {entity}"),
    "book": ("There is a new edition of {entity}", "The first chapter of {entity}"),
    "company": ("There was a letter from {entity}", "The head office of {entity}"),
}
"""Templates that are never trained on, by type. Other types get `GENERIC_HELD_OUT_TEMPLATES`."""

GENERIC_TEMPLATES = (
    # The form of Ferrando et al., arXiv 2411.14257, without the closing quote: the row ends with the name, and
    # tokenizers have a token for a bracket and a quote, which would include the end of "Frankfurt (Oder)"
    "The {entity_type} '{entity}",
    "The {entity_type} {entity}",
    "I have heard of the {entity_type} {entity}",
)
GENERIC_HELD_OUT_TEMPLATES = ("Here is what I know of {entity}", "An article about the {entity_type} {entity}")


def form(entity_type: str, attribute: str) -> str:
    """Return the question as a filled-in form, "City: {entity}", and "Country:" on the next line.

    Small base models answer it far better than questions in sentences.
    """
    words = [text.replace("_", " ").replace("{", "{{").replace("}", "}}") for text in (entity_type, attribute)]
    return f"{words[0].capitalize()}: {{entity}}\n{words[1].capitalize()}:"


_SENTENCES: dict[str, dict[str, str]] = {
    "player": {
        "birth_year": "The player {entity} was born in the year",
        "birthplace": "The player {entity} was born in the town of",
        "team": "The player {entity} plays for the team",
        "sport": "The player {entity} plays the sport of",
    },
    "movie": {
        "director": "The movie {entity} was directed by",
        "year": "The movie {entity} came out in the year",
        "actor": "The movie {entity} stars the actor",
        "genre": "The genre of the movie {entity} is",
    },
    "city": {
        "country": "The city of {entity} is located in the country of",
    },
    "song": {
        "artist": "The song {entity} is performed by",
        "album": "The song {entity} is on the album",
        "year": "The song {entity} came out in the year",
        "genre": "The genre of the song {entity} is",
    },
    "person": {
        "birth_year": "{entity} was born in the year",
        "birthplace": "{entity} was born in the town of",
        "country": "{entity} is a citizen of the country of",
        "occupation": "The occupation of {entity} is",
    },
    "country": {
        "capital": "The capital of {entity} is the city of",
        "continent": "{entity} is a country on the continent of",
        "language": "The official language of {entity} is",
        "currency": "The currency of {entity} is the",
    },
    "book": {
        "author": "The book {entity} was written by",
        "year": "The book {entity} was published in the year",
        "language": "The book {entity} was written in the language",
        "genre": "The genre of the book {entity} is",
    },
    "company": {
        "headquarters": "The company {entity} is based in the city of",
        "founder": "The company {entity} was founded by",
        "year": "The company {entity} was founded in the year",
        "country": "The company {entity} is from the country of",
    },
}

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    entity_type: {attribute: (sentence, form(entity_type, attribute)) for attribute, sentence in sentences.items()}
    for entity_type, sentences in _SENTENCES.items()
}
"""Questions by type and attribute: a sentence to complete, and a form. Others are only a form."""

Questions = Mapping[str, Mapping[str, str | Sequence[str]]]
"""Type -> attribute -> one template or several."""


class Prompt(NamedTuple):
    """A text with the character range `[start, end)` of the entity's name."""

    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The name as written in the text."""
        return self.text[self.start : self.end]


def render(template: str, entity: Entity, name: str | None = None) -> Prompt:
    """Return a template with an entity in it.

    Args:
        template (str): With `{entity}` once, and `{entity_type}` anywhere.
        entity (Entity): Its name may contain braces; only those of the template count.
        name (str, *optional*): One of its aliases, to use instead of its name.

    Raises:
        AlignmentError: If the template does not have the name exactly once, or has other fields.
    """
    name = entity.entity if name is None else name
    text, start = "", -1
    for literal, fieldname in _fields(template):
        text += literal
        if fieldname == "entity":
            start = len(text)
            text += name
        elif fieldname == "entity_type":
            text += entity.entity_type
    return Prompt(text, start, start + len(name))


def entity_templates(
    entity_type: str, given: Mapping[str, str | Sequence[str]] | None = None, held_out: bool = False
) -> tuple[str, ...]:
    """Return the templates of a type, from `given` or else from the library.

    Args:
        entity_type (str): The type.
        given (mapping, *optional*): Type -> one template or several, which replace the library's, held out or not.
        held_out (bool, *optional*, defaults to False): Return those that are never trained on.

    Raises:
        AlignmentError: If a template is one that `render` refuses, or the type has none.
    """
    own = HELD_OUT_TEMPLATES if held_out else ENTITY_TEMPLATES
    generic = GENERIC_HELD_OUT_TEMPLATES if held_out else GENERIC_TEMPLATES
    chosen = (given or {}).get(entity_type) or own.get(entity_type.casefold(), generic)
    return _checked(chosen, f"type {entity_type!r}")


def questions(entity_type: str, attribute: str, given: Questions | None = None) -> tuple[str, ...]:
    """Return the prompts that ask for an attribute, from `given` or else from the library.

    Raises:
        AlignmentError: If a template is one that `render` refuses, or the attribute has none.
    """
    chosen = (given or {}).get(entity_type, {}).get(attribute)
    chosen = chosen or QUESTIONS.get(entity_type.casefold(), {}).get(attribute.casefold())
    chosen = chosen or form(entity_type, attribute)
    return _checked(chosen, f"attribute {attribute!r} of type {entity_type!r}")


def _checked(templates: str | Sequence[str], what: str) -> tuple[str, ...]:
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise AlignmentError(f"templates=(): expected at least one for {what}.")
    for template in templates:
        _fields(template)
    return templates


def _fields(template: str) -> list[tuple[str, str | None]]:
    """The template as pairs of literal text and the field after it."""
    try:
        parts = [(literal, fieldname) for literal, fieldname, _, _ in Formatter().parse(template)]
    except (ValueError, TypeError) as error:
        raise AlignmentError(
            f"template={template!r}: expected a format string, got {error!r}. Write a literal brace twice."
        ) from error
    fields = [fieldname for _, fieldname in parts if fieldname is not None]
    if fields.count("entity") != 1 or set(fields) - {"entity", "entity_type"}:
        raise AlignmentError(
            f"template={template!r}: expected {{entity}} exactly once and optionally {{entity_type}}, got {fields}."
        )
    return parts
