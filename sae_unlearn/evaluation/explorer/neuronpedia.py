"""Links to the pages of an SAE's features on neuronpedia.org.

An SAE's id there is "<model>/<layer and set>", such as "gemma-2-2b/3-gemmascope-res-16k". SAELens writes it into an
SAE's `cfg.json`, and lists the ids of published SAEs in `pretrained_saes.yaml`, which is read if SAELens is installed.
Without an id no link is made: a page of another SAE of the same layer describes other features.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    """Ids by repository and folder, as the installed SAELens lists them. Empty without SAELens."""
    spec = find_spec("sae_lens")
    path = Path(spec.origin).parent / "pretrained_saes.yaml" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        return {}
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    releases = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return {
        (release["repo_id"], sae["path"]): sae["neuronpedia"]
        for release in releases.values()
        if isinstance(release, dict) and "repo_id" in release
        for sae in release.get("saes") or ()
        if sae.get("neuronpedia") and "path" in sae
    }
