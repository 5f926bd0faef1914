"""LRE relations: facts of 47 relations (Hernandez et al., 2024, arXiv 2308.09124; MIT license).

A fact has a subject, a template and an object. They are published in the repository `evandez/relations`, one JSON file
per relation. In a folder: `capital.json` below its kind (`factual/`, `bias/`, ...), in `data/` or not. A dataset on the
Hub must have the same files.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from sae_unlearn.checks import check_integer
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.recall import Fact
from sae_unlearn.files.hub import FileTree


def relation_facts(
    relation: str, source: str, template: int = 0, zero_shot: bool = True, revision: str | None = None
) -> list[Fact]:
    """Return the facts of a relation, as beginnings to complete.

    A fact's subject is the relation's subject.

    Args:
        relation (str): Name of its file, such as `country_capital_city`.
        source (str): A folder, or the id of a dataset on the Hub.
        template (int, *optional*, defaults to 0): Index of the template.
        zero_shot (bool, *optional*, defaults to True): Take the template from those meant to stand alone
            (`prompt_templates_zs`), if the file has them.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
        UnlearnError: If the file is malformed, or does not have the template; or `revision` is given for a folder.
    """
    path = _file(relation, source, revision)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        templates = (stored.get("prompt_templates_zs") if zero_shot else None) or stored["prompt_templates"]
        samples = [(str(sample["subject"]), str(sample["object"])) for sample in stored["samples"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnlearnError(
            f"{path}: expected a relation in the format of evandez/relations, got {type(error).__name__} {error}"
        ) from error
    check_integer("template", template, 0, len(templates) - 1)
    answers: dict[str, list[str]] = {}
    for subject, answer in samples:  # a subject with several objects is one fact with several answers
        answers.setdefault(subject, []).append(answer)
    return [
        Fact(templates[template].replace("{}", subject), tuple(dict.fromkeys(found)), subject)
        for subject, found in answers.items()
    ]


def _file(relation: str, source: str, revision: str | None) -> Path:
    tree = FileTree(source, revision=revision, dataset=True)
    tree.check_source()
    try:
        name = next((name for name in sorted(tree.names()) if PurePosixPath(name).name == f"{relation}.json"), None)
        if name is not None:
            return tree.fetch(name)
    except UnlearnError:
        raise
    except Exception as error:  # any kind: no network, an unknown dataset
        raise FileNotFoundError(
            f"source={source!r}: expected a folder or a Hub dataset, got {type(error).__name__}. Pass a folder with "
            "the files of github.com/evandez/relations."
        ) from error
    raise FileNotFoundError(f"source={source!r}: expected {relation}.json in it or below it.")
