"""Registry of data sets by their names on the command line: "tofu:forget10", "mmlu:anatomy@folder"."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.datasets.mmlu import mmlu_choices
from sae_unlearn.evaluation.datasets.muse import muse_facts, muse_passages, muse_texts
from sae_unlearn.evaluation.datasets.relations import relation_facts
from sae_unlearn.evaluation.datasets.rwku import rwku_facts
from sae_unlearn.evaluation.datasets.tofu import tofu_choices, tofu_facts
from sae_unlearn.evaluation.datasets.wmdp import wmdp_choices
from sae_unlearn.evaluation.metrics.choices import Choice
from sae_unlearn.evaluation.metrics.recall import Fact


READERS: dict[str, Callable[..., Sequence[Fact | Choice | str]]] = {
    "tofu": tofu_facts,
    "tofu-choices": tofu_choices,
    "muse": muse_facts,
    "muse-passages": muse_passages,
    "muse-texts": muse_texts,
    "wmdp": wmdp_choices,
    "mmlu": mmlu_choices,
    "rwku": rwku_facts,
    "relation": relation_facts,
}
"""Reader of each kind of data set, by the name before the colon in `read_named`."""


def is_named(name: str) -> bool:
    """Return True if `name` has the form of a data set's name, and not of a file's."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and (kind in READERS or bool(difflib.get_close_matches(kind, READERS, 1, 0.7)))


def read_named(name: str) -> list[Any]:
    """Return the rows of a data set by its name.

    Args:
        name (str): "KIND:PART" or "KIND:PART@SOURCE", with a folder or an id on the Hub as the source.

    Raises:
        UnlearnError: If the kind is unknown, or a relation has no source.
        FileNotFoundError: If the data does not exist.
    """
    kind, _, rest = name.partition(":")
    part, at, source = rest.partition("@")
    if kind not in READERS:
        near = difflib.get_close_matches(kind, READERS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise UnlearnError(f"kind={kind!r}: expected one of {', '.join(READERS)}. {hint}".rstrip())
    if not part or (at and not source):
        raise UnlearnError(f"name={name!r}: expected {kind}:PART or {kind}:PART@FOLDER_OR_HUB_ID.")
    if kind == "relation" and not source:
        raise UnlearnError(
            f"name={name!r}: expected {name}@FOLDER, a folder with the files of github.com/evandez/relations."
        )
    return list(READERS[kind](part, source) if source else READERS[kind](part))
