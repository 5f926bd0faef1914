"""The directory's data: SAELens' registry if another version is installed, else the shipped table."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sae_unlearn.sae.directory.entry import RESIDUAL, PublishedSAE
from sae_unlearn.sae.directory.registry import entries_of, read_registry, registry_file


SHIPPED = Path(__file__).with_name("published.json.gz")

# Not in SAELens' registry. Source: the README of https://github.com/EleutherAI/sparsify
ELEUTHER = PublishedSAE(
    model="meta-llama/Meta-Llama-3-8B",
    family="EleutherAI",
    release="sae-llama-3-8b-32x",
    id="layers.0",
    repository="EleutherAI/sae-llama-3-8b-32x",
    subfolder="layers.0",
    layer=0,
    width=131072,
    l0=192.0,
    license="MIT",
)
ELEUTHER_LAYERS = 32


@dataclass(frozen=True)
class Directory:
    """All published SAEs that are known.

    Attributes:
        source (str): Where the data come from, in words.
        saes (Mapping[str, Mapping[str, PublishedSAE]]): Those of the residual stream, by release and id.
        refused (Mapping[str, Mapping[str, str]]): The place that every SAE of a release reads that a guardrail cannot
            take, by release and id; `""` as the id stands for all ids of the release.
    """

    source: str
    saes: Mapping[str, Mapping[str, PublishedSAE]]
    refused: Mapping[str, Mapping[str, str]]


def from_registry(releases: Mapping[str, Any], source: str) -> Directory:
    """Return the directory of a SAELens registry, with EleutherAI's SAEs."""
    saes: dict[str, dict[str, PublishedSAE]] = {}
    refused: dict[str, dict[str, str]] = {}
    for release, about in releases.items():
        for id, place, entry in entries_of(release, about):
            if place == RESIDUAL:
                saes.setdefault(release, {})[id] = entry
            else:
                refused.setdefault(release, {})[id] = place
    for release, places in refused.items():
        if release not in saes and len({*places.values()}) == 1:
            refused[release] = {"": next(iter(places.values()))}
    saes[ELEUTHER.release] = {
        f"layers.{layer}": replace(ELEUTHER, id=f"layers.{layer}", subfolder=f"layers.{layer}", layer=layer)
        for layer in range(ELEUTHER_LAYERS)
    }
    return Directory(source, saes, refused)


def to_bytes(directory: Directory, saelens: str) -> bytes:
    """Return the directory as the file that is shipped: the same bytes for the same content."""
    releases = {}
    for release, saes in directory.saes.items():
        first = next(iter(saes.values()))
        shared = {name: getattr(first, name) for name in ("model", "family", "repository", "license")}
        rows = [
            [e.id, None if e.subfolder == e.id else e.subfolder, e.layer, e.width, e.l0, e.neuronpedia_id]
            for e in saes.values()
        ]
        releases[release] = shared | {"saes": rows}
    found = {"sae-lens": saelens, "releases": releases, "refused": directory.refused}
    return gzip.compress(json.dumps(found, separators=(",", ":"), sort_keys=True).encode(), 9, mtime=0)


def read_shipped() -> tuple[Directory, str]:
    """Return the table that is shipped, and the version of SAELens whose registry it was made from."""
    found = json.loads(gzip.decompress(SHIPPED.read_bytes()))
    saes = {}
    for release, about in found["releases"].items():
        rows = about.pop("saes")
        saes[release] = {
            id: PublishedSAE(**about, release=release, id=id, subfolder=id if path is None else path, **_named(rest))
            for id, path, *rest in rows
        }
    source = f"the table of this package, made from sae-lens {found['sae-lens']}"
    return Directory(source, saes, found["refused"]), found["sae-lens"]


def _named(values: list[Any]) -> dict[str, Any]:
    return dict(zip(("layer", "width", "l0", "neuronpedia_id"), values, strict=True))


@cache
def directory() -> Directory:
    """Return the directory; read once.

    SAELens' registry of 1.5 MB takes seconds to read, so it is read only if its version is not the shipped table's.
    """
    file = _other_registry()
    if file is None:
        return _shipped()[0]
    return from_registry(read_registry(file), f"the registry of sae-lens {version('sae-lens')}")


def has_release(name: str) -> bool:
    """Return True if there is a release of that name; reads no registry."""
    file = _other_registry()
    if file is None:
        shipped = _shipped()[0]
        return name in shipped.saes or name in shipped.refused
    return name == ELEUTHER.release or f"\n{name}:" in "\n" + file.read_text(encoding="utf-8")


@cache
def _shipped() -> tuple[Directory, str]:
    return read_shipped()


def _other_registry() -> Path | None:
    """Return the installed SAELens' registry, unless the shipped table was made from that version."""
    try:
        installed = version("sae-lens")
    except PackageNotFoundError:
        return None
    return None if installed == _shipped()[1] else registry_file()
