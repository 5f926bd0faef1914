"""LRE relations: facts of 47 relations as a subject, a template and an object (Hernandez et al., 2024,
arXiv 2308.09124; MIT license).

They are published in the repository `evandez/relations`, one JSON file a relation. In a folder: `capital.json` with its
kind above it (`factual/`, `bias/`, ...), in `data/` or not. A dataset on the Hub has to have the same files.
"""

import json
from pathlib import Path
from typing import Any

from sae_unlearn.evaluation.metrics.recall import Fact


def relation_facts(
    relation: str, source: str, template: int = 0, zero_shot: bool = True, revision: str | None = None
) -> list[Fact]:
    """The facts of a relation, as beginnings to be completed; a fact's subject is the relation's subject.

    Args:
        relation: name of its file, such as `country_capital_city`.
        source: a folder, or a dataset's id on the Hub.
        template: which of its templates.
        zero_shot: take it from those meant to stand alone (`prompt_templates_zs`), where there are any.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is malformed, or has no such template.
    """
    path = _file(relation, source, revision)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        templates = (stored.get("prompt_templates_zs") if zero_shot else None) or stored["prompt_templates"]
        samples = [(str(sample["subject"]), str(sample["object"])) for sample in stored["samples"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no relation of this format: {type(error).__name__} {error}") from error
    if not 0 <= template < len(templates):
        raise ValueError(f"{relation} has {len(templates)} templates; template={template} is none of them.")
    answers: dict[str, list[str]] = {}
    for subject, answer in samples:  # a subject with several objects is one fact with several answers
        answers.setdefault(subject, []).append(answer)
    return [
        Fact(templates[template].replace("{}", subject), tuple(dict.fromkeys(found)), subject)
        for subject, found in answers.items()
    ]


def _file(relation: str, source: str, revision: str | None) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            pattern = [f"{relation}.json", f"*/{relation}.json"]
            folder = Path(snapshot_download(source, repo_type="dataset", revision=revision, allow_patterns=pattern))
        except Exception as error:  # of every kind: no network, no such dataset, no valid id
            raise FileNotFoundError(
                f"{source} is no folder here, and the Hub gives no dataset of that name ({type(error).__name__}); the "
                "relations are files of github.com/evandez/relations."
            ) from error
    found = next((path for path in sorted(folder.rglob("*.json")) if path.stem == relation), None)
    if found is None:
        raise FileNotFoundError(f"{source} holds no {relation}.json, in it or below it.")
    return found
