"""Data sets by the names that a command line gives them: "tofu:forget10", "mmlu:anatomy@folder"."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

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
"""The reader of each kind of data set, by the name that comes before the colon in `read_named`."""


def is_named(name: str) -> bool:
    """Whether `name` has the form of a data set's name and not that of a file's."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and (kind in READERS or bool(difflib.get_close_matches(kind, READERS, 1, 0.7)))


def read_named(name: str) -> list[Any]:
    """A data set by its name, "KIND:PART" or "KIND:PART@SOURCE" with a folder or an id on the Hub.

    Raises:
        ValueError: an unknown kind, or a relation without a source.
        FileNotFoundError: it is not there.
    """
    kind, _, rest = name.partition(":")
    part, at, source = rest.partition("@")
    if kind not in READERS:
        near = difflib.get_close_matches(kind, READERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(READERS)}."
        raise ValueError(f"{kind!r} is no kind of data set; {hint}")
    if not part or (at and not source):
        raise ValueError(f"{name!r} names no part or no source; write {kind}:PART or {kind}:PART@FOLDER_OR_HUB_ID.")
    if kind == "relation" and not source:
        raise ValueError(
            f"{name!r} has no source; write {name}@FOLDER, with the files of github.com/evandez/relations."
        )
    return list(READERS[kind](part, source) if source else READERS[kind](part))
