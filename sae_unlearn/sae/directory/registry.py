"""Read SAELens' registry of published SAEs: its YAML file, without importing SAELens."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_unlearn.sae.directory.entry import RESIDUAL, PublishedSAE
from sae_unlearn.sae.directory.models import HUB_IDS


FILE = "pretrained_saes.yaml"

# SAELens' loader -> the publication, for those that one name covers.
FAMILIES = {
    "gemma_2": "Gemma Scope",
    "gemma_3": "Gemma Scope 2",
    "llama_scope": "Llama Scope",
    "llama_scope_r1_distill": "Llama Scope R1 Distill",
    "qwen_scope": "Qwen-Scope",
    "goodfire": "Goodfire",
    "deepseek_r1": "qresearch",
    "dictionary_learning_1": "dictionary_learning",
    "sparsify": "EleutherAI",
    None: "SAELens",
}
OPENAI = re.compile(r"gpt2-small-.*-v5-\d+k")  # converted to SAELens' format
LICENSES = {"google/gemma-scope": "CC-BY-4.0"}
"""Start of the repository's name -> SPDX id of the license that its card names."""

# The registry's model of two releases is not the one that the weights are of.
MODEL_OF_RELEASE = {"gemma-scope-9b-it-res": "google/gemma-2-9b-it"}

TRANSCODERS = re.compile(r"transcoder|[-_]clt[-_]")
HOOK = re.compile(r"blocks\.(\d{1,4})\.hook_(resid_pre|resid_post|resid_mid|attn_out|mlp_out|z)")
HOOK_PLACES = {"resid_mid": "residual_mid", "attn_out": "attention", "mlp_out": "mlp", "z": "attention"}
LLAMA_SCOPE = re.compile(r"l(\d{1,4})([rmat])_")
LLAMA_SCOPE_PLACES = {"r": RESIDUAL, "m": "mlp", "a": "attention", "t": "transcoder"}
LAYER = re.compile(r"(?:^|[/_])layer_?(\d{1,4})(?:[/_]|$)")
THOUSANDS = re.compile(r"(?:width_|-w-|res-|-v5-)(\d{1,4})([km])(?:[-_/]|$)")
POWER = re.compile(r"2pow(\d+)")
ENDS = re.compile(r"hook_resid_p(?:re|ost)_(\d{3,6})(?:_anthropic)?")
L0 = re.compile(r"(?:average_l0_|L0_|-l0-)(\d+)")


def registry_file() -> Path | None:
    """Return SAELens' registry on this machine, or None if SAELens is not installed."""
    try:
        spec = importlib.util.find_spec("sae_lens")
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin).with_name(FILE) if spec is not None and spec.origin else None
    return file if file is not None and file.is_file() else None


def read_registry(file: Path) -> dict[str, Any]:
    """Return the releases of a registry, by their names."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the plain one takes ten seconds
    found = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    return found if isinstance(found, dict) else {}


def entries_of(release: str, about: Mapping[str, Any]) -> Iterator[tuple[str, str, PublishedSAE]]:
    """Yield id, place and entry of every SAE of a release.

    The place is `RESIDUAL` or one of `REFUSED_PLACES`.

    Args:
        release (str): Name of the release.
        about (Mapping[str, Any]): Entry of the release in the registry.
    """
    seen = set()
    for sae in about["saes"]:
        if sae["id"] in seen:  # SAELens reads the first of two
            continue
        seen.add(sae["id"])
        place, layer = place_of(release, about, sae)
        repository = about["repo_id"]
        license = next((name for start, name in LICENSES.items() if repository.startswith(start)), None)
        yield (
            sae["id"],
            place,
            PublishedSAE(
                model=MODEL_OF_RELEASE.get(release) or HUB_IDS.get(about["model"], about["model"]),
                family="OpenAI" if OPENAI.fullmatch(release) else FAMILIES.get(about.get("conversion_func"), "SAELens"),
                release=release,
                id=sae["id"],
                repository=repository,
                subfolder=str(sae["path"]),
                layer=layer,
                width=width_of(release, about, sae),
                l0=l0_of(about, sae),
                license=license,
                neuronpedia_id=sae.get("neuronpedia"),
            ),
        )


def place_of(release: str, about: Mapping[str, Any], sae: Mapping[str, Any]) -> tuple[str, int]:
    """Return the place that an SAE reads, and the 0-based layer of that output (-1 for another place)."""
    id, path = sae["id"], str(sae["path"])
    overrides = about.get("config_overrides") or {}
    if about.get("conversion_func") == "temporal":
        return "temporal", -1
    if TRANSCODERS.search(f"{release}/{about['repo_id']}/{path}"):
        return "transcoder", -1
    if overrides.get("normalize_activations") == "constant_norm_rescale":
        return "scaled", -1
    if match := HOOK.match(id):
        layer, hook = int(match[1]), match[2]
        if hook in HOOK_PLACES:
            return HOOK_PLACES[hook], -1
        layer -= hook == "resid_pre"
        return (RESIDUAL, layer) if layer >= 0 else ("embedding", -1)
    if match := LLAMA_SCOPE.match(id):
        place = LLAMA_SCOPE_PLACES[match[2]]
        return place, int(match[1]) if place == RESIDUAL else -1
    if id.startswith("embedding"):
        return "embedding", -1
    if re.search(r"-mlp\b|mlp_out", f"{release}/{path}"):
        return "mlp", -1
    if re.search(r"-att\b|attn_out", f"{release}/{path}"):
        return "attention", -1
    match = LAYER.search(id)
    return (RESIDUAL, int(match[1])) if match else ("unknown", -1)


def width_of(release: str, about: Mapping[str, Any], sae: Mapping[str, Any]) -> int | None:
    """Return the number of features from the names; None if no name has it.

    Names count in thousands of a power of two: "16k" is 16,384, "131k" and "128k" are 131,072.
    """
    names = [sae["id"], str(sae["path"]), sae.get("neuronpedia") or "", release, about["repo_id"]]
    for name in names:
        if match := POWER.search(name):
            return 2 ** int(match[1])
        if match := ENDS.search(name):
            return int(match[1])
    if match := re.search(r"-W(\d+)K-", about["repo_id"]):
        return int(match[1]) * 1024
    for name in names:
        if match := THOUSANDS.search(name):
            return int(2 ** round(math.log2(int(match[1]) * (1e3 if match[2] == "k" else 1e6))))
    return None


def l0_of(about: Mapping[str, Any], sae: Mapping[str, Any]) -> float | None:
    """Return the mean number of active features per token, from the registry or the names."""
    if isinstance(sae.get("l0"), (int, float)):
        return float(sae["l0"])
    match = L0.search(str(sae["path"])) or L0.search(about["repo_id"])
    return float(match[1]) if match else None
