"""Links to the pages of an SAE's features on neuronpedia.org.

An SAE's id there is "<model>/<layer and set>", such as "gemma-2-2b/3-gemmascope-res-16k". SAELens writes it into an
SAE's `cfg.json`, and the directory of published SAEs has it for those of the Hub. Without an id no link is made: a page
of another SAE of the same layer describes other features.
"""

from functools import cache
from typing import Any

from sae_unlearn.sae.directory.table import directory
from sae_unlearn.sae.formats.saelens_config import NEURONPEDIA_ID


SITE = "https://www.neuronpedia.org"


def neuronpedia_id(sae_source: dict[str, Any] | None) -> str | None:
    """Return the id of an SAE by its `source`, or None if it is unknown.

    Args:
        sae_source (dict or None): As in `SAEGuardrailConfig.sae_source`. It is untrusted.
    """
    source = sae_source or {}
    found = source.get("neuronpedia_id")
    if found is None and source.get("id") and source.get("subfolder") and not source.get("local"):
        found = _listed().get((str(source["id"]), str(source["subfolder"])))
    return found if isinstance(found, str) and NEURONPEDIA_ID.fullmatch(found) else None


def feature_page(identity: str | None, feature: int) -> str | None:
    """Return the URL of a feature's page, or None if the SAE or the feature is unknown."""
    return None if identity is None else f"{SITE}/{identity}/{feature}"


@cache
def _listed() -> dict[tuple[str, str], str]:
    """Ids by repository and folder, of the directory of published SAEs."""
    entries = (entry for saes in directory().saes.values() for entry in saes.values())
    return {(entry.repository, entry.subfolder): entry.neuronpedia_id for entry in entries if entry.neuronpedia_id}
