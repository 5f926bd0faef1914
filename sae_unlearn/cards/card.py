"""Parts that the cards of all adapters share: the filled-in template, metadata, licenses and reports."""

import html
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


CARD_NAME = "README.md"
# Files of the reports of `sae_unlearn.evaluation` that are saved with a card.
REPORT_FILES = tuple(
    f"{folder}/{name}.{kind}"
    for folder in ("evaluation", "audit")
    for name in ("audit", "comparison", "report")
    for kind in ("json", "md", "png")
)


_KINDS = {".md": "tables", ".png": "picture", ".json": "JSON with all rows"}


class SavedReport(Protocol):
    """A report of an evaluation or an audit, from `sae_unlearn.evaluation`."""

    def to_card(self) -> str:
        """Return the part that a card shows, as Markdown with the title as a first-level heading."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the report's files into a folder and return their paths."""
        ...


def adapter_metadata(base_model: str | None, license: str | None, tags: Iterable[str]) -> ModelCardData:
    """Return the metadata of an adapter's card.

    Args:
        base_model (str or None): Hub id of the base model. None if it has none.
        license (str or None): License of the adapter, as the Hub names licenses. None states none.
        tags (iterable of str): Tags for the Hub.
    """
    return ModelCardData(
        base_model=base_model,
        base_model_relation="adapter" if base_model else None,
        library_name="peft",
        license=license,
        tags=list(tags),
        pipeline_tag="text-generation",
    )


def write_model_card(
    folder: str | os.PathLike[str], template: Path, data: ModelCardData, fields: Mapping[str, str]
) -> None:
    """Fill in the template's `{{ name }}` fields in one pass and write README.md with its metadata.

    Args:
        folder (str or PathLike): Folder for README.md.
        template (Path): Markdown with `{{ name }}` fields.
        data (ModelCardData): The metadata.
        fields (mapping): Text by field name. Braces in a text are not filled in.

    Raises:
        KeyError: If the template has a field that is not in `fields`.
    """
    text = re.sub(r"\{\{ (\w+) \}\}", lambda found: fields[found[1]], template.read_text(encoding="utf-8"))
    text = re.sub(r"\n{3,}", "\n\n", text)  # around fields that are empty
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(folder) / CARD_NAME)


def public_name(name: str | None) -> str | None:
    """Return a model's name if it is valid in the metadata field `base_model`, and None for a local path."""
    if not name or os.path.isabs(name) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def licenses_on_the_hub(api: HfApi, repo_ids: Iterable[str | None]) -> dict[str, str]:
    """Return the licenses in the cards of repositories, by id, without those that cannot be read."""
    found = {}
    for repo_id in repo_ids:
        if repo_id and public_name(repo_id):
            try:
                license = (api.model_info(repo_id).card_data or {}).get("license")
            except Exception:  # missing, private or offline: the card then says "not recorded"
                continue
            if license:
                found[repo_id] = str(license)
    return found


def license_line(what: str, name: str | None, license: str | None) -> str:
    """Return the list item that names a part of an adapter and its license."""
    name, license = (as_plain_text(value) if value else None for value in (name, license))
    shown = f"`{name}`" if name else "not recorded"
    return f"- {what}: {shown}, {f'license `{license}`' if license else 'license not recorded; see its page'}."


def as_plain_text(value: object) -> str:
    """Return `value` as one line of Markdown without active markup: no HTML, link, picture or table cell."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = html.escape(text, quote=False).replace("`", "'")
    return re.sub(r"[\[\]|]|(?<=:)/|(?<=www)\.", lambda found: f"&#{ord(found[0])};", text, flags=re.IGNORECASE)


def report_section(report: SavedReport | None, folder: str | os.PathLike[str], name: str) -> str:
    """Return a report as a section of a card, with links to its files, and save them in `folder/name`.

    Args:
        report (SavedReport or None): The report. None gives an empty section.
        folder (str or PathLike): Folder of the card.
        name (str): "evaluation" or "audit".
    """
    if report is None:
        return ""
    written = report.save(Path(folder) / name)
    text = re.sub(r"^(#+) ", r"##\1 ", report.to_card().strip(), flags=re.MULTILINE)
    links = [f"[{_KINDS[path.suffix]}]({name}/{path.name})" for path in written if path.suffix in _KINDS]
    return f"{text}\n\nThe whole report: {', '.join(links)}."


def picture_line(folder: str | os.PathLike[str], picture: str, caption: str) -> str:
    """Return the Markdown that shows a picture of the folder; "" if the file does not exist."""
    return f"![{caption}]({picture})" if (Path(folder) / picture).is_file() else ""
