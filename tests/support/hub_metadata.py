"""What the Hub accepts as the metadata of a model card, as far as it is documented.

The rules are those of https://huggingface.co/docs/hub/model-cards and
https://github.com/huggingface/hub-docs/blob/main/modelcard.md: which fields hold an id, which a list, which one of a
fixed set of words.
"""

import re
from typing import Any

import yaml


REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
PIPELINES = {"text-generation", "feature-extraction", "fill-mask", "text-classification", "image-text-to-text"}
LICENSES = {"apache-2.0", "mit", "gemma", "llama2", "llama3", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "other"}
TEXTS = ("library_name", "license_name", "license_link", "pipeline_tag", "base_model_relation", "license")


def metadata(card: str) -> Any:
    """The metadata of a README.md, None if it has none."""
    found = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def metadata_errors(card: str) -> tuple[list[str], list[str]]:
    """`(errors, warnings)` of a README.md; with errors, a commit of it is refused."""
    try:
        data = metadata(card)
    except yaml.YAMLError as error:
        return [f"YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["metadata must be a mapping"], []
    errors = [f'"{key}" must be a string' for key in TEXTS if key in data and not isinstance(data[key], str)]
    for name in ("base_model", "datasets"):
        ids = data.get(name, [])
        for repo_id in ids if isinstance(ids, list) else [ids]:
            if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id) or len(repo_id) > 96:
                errors.append(f'"{name}" with value "{repo_id}" is not valid: use a model id from the Hub')
    tags = data.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        errors.append('"tags" must be an array of strings')
    for name, allowed in (
        ("base_model_relation", RELATIONS),
        ("pipeline_tag", PIPELINES),
        ("license", LICENSES),
    ):
        if name in data and data[name] not in allowed:
            errors.append(f'"{name}" must be one of {sorted(allowed)}')
    return errors, _index_errors(data.get("model-index"))


def _index_errors(index: Any) -> list[str]:
    if index is None or (isinstance(index, list) and all("name" in x and "results" in x for x in index)):
        return []
    return ['"model-index" is malformed and is left out']
