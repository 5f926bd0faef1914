"""Where an SAE comes from, as it may be published, and as cards name it."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from sae_unlearn.cards.card import as_plain_text


_SHOWN = ("id", "revision", "subfolder", "architecture", "sha256")


def public_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """`SparseAutoencoder.source`, fit to be published: of a local folder only its name, and `"local": True`.

    Of what comes from the Hub the commit is recorded; where there is none, `id` is a path, absolute or not.
    """
    if not source.get("id") or source.get("revision"):
        return dict(source)
    return {**source, "id": PurePath(str(source["id"])).name, "local": True}


def source_line(source: Mapping[str, Any]) -> str:
    """The source on one line of Markdown; "not recorded" if nothing of it is known."""
    shown = [f"{key} `{as_plain_text(source[key])}`" for key in _SHOWN if source.get(key)]
    return ", ".join(shown) + (", from a local folder" if source.get("local") else "") if shown else "not recorded"
