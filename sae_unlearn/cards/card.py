"""What the cards of all adapters have in common: a template that is filled in, licences, and reports."""

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
# What the reports of `sae_unlearn.evaluation` are called where they lie beside a card.
REPORT_FILES = tuple(
    f"{folder}/{name}.{kind}"
    for folder in ("evaluation", "audit")
    for name in ("audit", "comparison", "report")
    for kind in ("json", "md", "png")
)


class SavedReport(Protocol):
    """A report of an evaluation or an audit, see `sae_unlearn.evaluation`."""

    def to_markdown(self) -> str:
        """The report, its title as a first-level heading."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write its files into a folder, and say which."""
        ...


def adapter_metadata(base_model: str | None, license: str | None, tags: Iterable[str]) -> ModelCardData:
    """The metadata of an adapter's card.

    Args:
        base_model: its Hub id; None where there is none to be named.
        license: the adapter's own, as the Hub names licences.
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
    """Fill in `{{ name }}` in a template, once, and write README.md with its metadata.

    Raises:
        KeyError: the template asks for a field that there is not.
    """
    text = re.sub(r"\{\{ (\w+) \}\}", lambda found: fields[found[1]], template.read_text(encoding="utf-8"))
    text = re.sub(r"\n{3,}", "\n\n", text)  # left behind by fields that have nothing to say
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(folder) / CARD_NAME)


def public_name(name: str | None) -> str | None:
    """A model's name as the metadata `base_model` can hold it; None for a local path, which says nothing to others."""
    if not name or os.path.isabs(name) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def licences_on_the_hub(api: HfApi, repo_ids: Iterable[str | None]) -> dict[str, str]:
    """The licences that repositories state in their own cards; those that cannot be asked are left out."""
    found = {}
    for repo_id in repo_ids:
        if repo_id and public_name(repo_id):
            try:
                licence = (api.model_info(repo_id).card_data or {}).get("license")
            except Exception:  # not there, private, no connection: the card then says that it is not recorded
                continue
            if licence:
                found[repo_id] = str(licence)
    return found


def licence_line(what: str, name: str | None, licence: str | None) -> str:
    """One line on what an adapter is made of, and under which licence that is."""
    name, licence = (as_plain_text(value) if value else None for value in (name, licence))
    shown = f"`{name}`" if name else "not recorded"
    return f"- {what}: {shown}, {f'licence `{licence}`' if licence else 'licence not recorded; see its page'}."


def as_plain_text(value: object) -> str:
    """`value` for a Markdown page: one line, nothing of it carried out: no markup, link, picture or new cell."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = html.escape(text, quote=False).replace("`", "'")
    return re.sub(r"[\[\]|]|(?<=:)/|(?<=www)\.", lambda found: f"&#{ord(found[0])};", text, flags=re.IGNORECASE)


def report_section(report: SavedReport | None, folder: str | os.PathLike[str], name: str) -> str:
    """A report as a part of a card; its files are written into `folder/name`. Empty without a report."""
    if report is None:
        return ""
    written = report.save(Path(folder) / name)
    text = re.sub(r"^(#+) ", r"##\1 ", report.to_markdown().strip(), flags=re.MULTILINE)
    pictures = [f"![{name}]({name}/{path.name})" for path in written if path.suffix == ".png"]
    return "\n\n".join([text, *pictures])


def picture_line(folder: str | os.PathLike[str], picture: str, caption: str) -> str:
    """A picture of the folder as a part of its card, empty if it is not there."""
    return f"![{caption}]({picture})" if (Path(folder) / picture).is_file() else ""
