"""Entities whose names are words of the tiny tokenizer, and their labels."""

from tiny_topic import tiny_tokenizer
from zoo import base_model

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling.label import label_entities


QUESTIONS = {"word": {"next": "w5 {entity}", "last": ("{entity} w6 w7", "{entity} w8")}}


def words(number=12, attributes=("next", "last"), accepted=tuple(f"w{i}" for i in range(2, 40))):
    """Entities whose names are words of `tiny_tokenizer`; about four in ten random words are an accepted answer."""
    return EntitySet(Entity(f"w{40 + i}", "word", dict.fromkeys(attributes, accepted)) for i in range(number))


def label(model=None, candidates=None, **options):
    options = {"questions": QUESTIONS, "progress": False, "max_new_tokens": 3} | options
    return label_entities(model or base_model("llama"), tiny_tokenizer(), candidates or words(), **options)
