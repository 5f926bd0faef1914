"""Look published SAEs up: those of a model, the suggested one, and one by its name."""

from __future__ import annotations

import difflib
import math
import re
import warnings

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.directory.entry import REFUSED_PLACES, PublishedSAE
from sae_unlearn.sae.directory.models import LAYERS, base_key, key, tuning
from sae_unlearn.sae.directory.table import directory, has_release


USUAL_WIDTH = 16384
USUAL_L0 = 64.0
CHECKPOINT = re.compile(r"_step_\d+$")
DEMO = {"demo": "google/gemma-3-270m"}


def published_saes(model: str, checkpoints: bool = False) -> list[PublishedSAE]:
    """Return the published residual SAEs of a model, by layer, width and L0.

    A model is recognized by the last part of its name, so copies and local folders of that name match. If none
    matches, those of another form of the model are returned (quantized, renamed), or else those of a chat model's base,
    and a warning says so.

    Args:
        model (str): Hub id or folder, e.g. `"google/gemma-2-2b-it"`; `"demo"` is the demo's model.
        checkpoints (bool, *optional*, defaults to False): List states of unfinished trainings as well.

    Returns:
        `list[PublishedSAE]`: Empty if none is known.
    """
    model = DEMO.get(model, model)
    everything = [
        entry
        for saes in directory().saes.values()
        for entry in saes.values()
        if checkpoints or not CHECKPOINT.search(entry.id)
    ]
    found = [entry for entry in everything if key(entry.model) == key(model)]
    if not found:
        found = [entry for entry in everything if base_key(entry.model) == base_key(model)]
        same = [entry for entry in found if tuning(entry.model) == tuning(model)]
        found = same or found
        if found:
            about = f"{model} is not listed by this name" if same else f"No SAE was published for {model}"
            warnings.warn(
                f"{about}; these are of {found[0].model}, whose activations can differ. Check the AUROC of the fit "
                "before you trust it.",
                stacklevel=2,
            )
    return sorted(_once(found), key=lambda e: (e.layer, e.width or 0, e.l0 or 0.0, e.release))


def _once(entries: list[PublishedSAE]) -> list[PublishedSAE]:
    """Return one entry for each set of files: the one with a page on Neuronpedia, or the first."""
    kept: dict[tuple[str, str], PublishedSAE] = {}
    for entry in entries:
        place = (entry.repository, entry.subfolder)
        if place not in kept or (entry.neuronpedia_id and not kept[place].neuronpedia_id):
            kept[place] = entry
    return list(kept.values())


def suggested_sae(entries: list[PublishedSAE], layer: int | None = None) -> PublishedSAE | None:
    """Return the SAE to try first, or None if there is none.

    It is the first by these, in this order: features that a guardrail can slice exactly (no top-k), the layer
    nearest to `layer` or to the middle of the model, a width near 16k, and an L0 near 64.

    Args:
        entries (list[PublishedSAE]): Of one model.
        layer (int, *optional*): 0-based decoder layer.
    """

    def distance(entry: PublishedSAE) -> tuple[bool, float, float, float, bool]:
        depth = LAYERS.get(base_key(entry.model)) or 1 + max(e.layer for e in entries)
        wanted = (depth - 1) / 2 if layer is None else layer
        width = abs(math.log2((entry.width or 4 * USUAL_WIDTH) / USUAL_WIDTH))
        l0 = abs(math.log2((entry.l0 or 4 * USUAL_L0) / USUAL_L0))
        return entry.approximate, abs(entry.layer - wanted), width, l0, entry.neuronpedia_id is None

    return min(entries, key=distance, default=None)


def suggest(model: str, layer: int | None = None) -> PublishedSAE:
    """Return the suggested SAE of a model.

    Args:
        model (str): As for `published_saes`.
        layer (int, *optional*): 0-based decoder layer; a middle one without it.

    Raises:
        SAEFormatError: If none is known for the model.
    """
    entries = published_saes(model)
    found = suggested_sae(entries, layer)
    if found is None:
        raise SAEFormatError(
            f"sae='auto': expected a published SAE of {model!r:.80}, got none in {directory().source}. Train one with "
            "`sae-unlearn train-sae`, or name one by `sae`."
        )
    return found


def suggest_layers(model: str, layer: int | None = None) -> list[PublishedSAE]:
    """Return SAEs of several layers: the suggested one, and near a third and two thirds of the depth.

    Args:
        model (str): As for `published_saes`.
        layer (int, *optional*): 0-based decoder layer; only one SAE is returned then.

    Raises:
        SAEFormatError: If none is known for the model.
    """
    found = [suggest(model, layer)]
    if layer is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `suggest` has warned
            entries = published_saes(model)
        depth = LAYERS.get(base_key(found[0].model)) or 1 + max(entry.layer for entry in entries)
        near = [suggested_sae(entries, round(share * (depth - 1))) for share in (1 / 3, 2 / 3)]
        found += [entry for entry in near if entry is not None]
    return list({entry.layer: entry for entry in reversed(found)}.values())[::-1]


def find_sae(name: str) -> PublishedSAE | None:
    """Return the SAE called `RELEASE/ID`, as SAELens names it; None if the first part is not a release.

    Raises:
        SAEFormatError: If the release has no such id, or the SAE reads a place that a guardrail cannot edit.
    """
    release, _, id = name.partition("/")
    if not has_release(release):
        return None
    known = directory()
    saes, refused = known.saes.get(release, {}), known.refused.get(release, {})
    place = refused.get(id, refused.get(""))
    if place is not None and id not in saes:
        raise SAEFormatError(f"{name} is {REFUSED_PLACES[place]}. Choose one of the residual stream.")
    if id not in saes:
        near = difflib.get_close_matches(id, saes, n=3, cutoff=0.0)
        raise SAEFormatError(
            f"{name!r:.120}: expected one of the {len(saes)} ids of the release {release}. Use "
            f"{' or '.join(f'{release}/{one}' for one in near)}."
        )
    return saes[id]
