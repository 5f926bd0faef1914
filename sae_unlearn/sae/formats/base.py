"""The published formats that can be read, found by the files in a folder.

A folder with one SAE, wherever it came from.

What a reader hands back: the folded weights of one autoencoder.

Which decoder layer an SAE reads, from the names that published SAEs give to the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_unlearn.errors import SAEFormatError


@dataclass(frozen=True)
class SAEFolder:
    """What a reader is given.

    Attributes:
        path: the folder on this machine in which the SAE's files lie.
        files: the files that the reader asked for, relative to `path`.
        label: where the SAE comes from as people write it, e.g. "google/gemma-scope-2b-pt-res/layer_3/width_16k";
            formats without a configuration file tell the layer and the place only there.
    """

    path: Path
    files: tuple[str, ...]
    label: str

    def has(self, name: str) -> bool:
        """Whether the optional file `name` is there."""
        return name in self.files

    def file(self, name: str) -> Path:
        """The path of one of `files` on this machine."""
        return self.path / name


@dataclass(frozen=True, eq=False)
class SAEWeights:
    """Folded weights in the file's dtype, or in float64 where folding changed them.

    Attributes:
        W_enc, b_enc, W_dec, b_dec, threshold, architecture, k, layer, input_norm: as in `SparseAutoencoder`.
        weights_file: the file the tensors came from; its sha256 identifies the SAE.
        neuronpedia_id: of its page at neuronpedia.org, "<model>/<layer and set>", where the file names one.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    weights_file: Path
    architecture: str
    threshold: torch.Tensor | None = None
    k: int | None = None
    layer: int | None = None
    neuronpedia_id: str | None = None
    input_norm: str | None = None


Find = Callable[[Collection[str]], tuple[str, ...] | None]
"""From the paths of all files below a folder to those that a format's SAE is made of; None where it is not one."""


@dataclass(frozen=True)
class Reader:
    """One published format.

    Attributes:
        name: short name, e.g. "saelens"; kept in `SparseAutoencoder.source["format"]`.
        layout: the files, in words, for error messages.
        find: given the paths of all files below a folder (relative, with "/"), the ones to fetch and read, or None
            where the folder is not of this format.
        read: the folded weights, from a folder in which the found files lie on disk.
    """

    name: str
    layout: str
    find: Find
    read: Callable[[SAEFolder], SAEWeights]


UNREADABLE = {
    "a temporal SAE, whose features depend on earlier tokens": re.compile(r"latest_ckpt\.safetensors"),
    "an SAE of the attention heads' outputs, not of the residual stream": re.compile(r"[\w.+-]+_Hcat_z_[\w.+-]+\.pt"),
}
"""What is published for other purposes and will not be read, told by the name of its file."""

READERS: dict[str, Reader] = {}


def needs(*required: str, optional: tuple[str, ...] = ()) -> Find:
    """A `find` for formats with fixed file names: all `required`, and those of `optional` that are there."""

    def find(names: Collection[str]) -> tuple[str, ...] | None:
        if not all(name in names for name in required):
            return None
        return required + tuple(name for name in optional if name in names)

    return find


def one_of(file: re.Pattern[str]) -> Find:
    """A `find` for formats with a file per layer: the one called so. A folder with several is no SAE but a choice."""

    def find(names: Collection[str]) -> tuple[str, ...] | None:
        files = tuple(name for name in names if file.fullmatch(name))
        return files if len(files) == 1 else None

    return find


def register_reader(reader: Reader) -> None:
    """Makes a format known to `SparseAutoencoder.from_pretrained`.

    Raises:
        ValueError: a reader of that name is there already.
    """
    if not isinstance(reader, Reader):
        raise TypeError(f"expected a Reader, got {type(reader).__name__}; see sae_unlearn.sae.formats.Reader")
    if reader.name in READERS:
        raise ValueError(f"a reader named {reader.name!r} is registered already; give yours another name")
    READERS[reader.name] = reader


def matching_readers(names: Collection[str]) -> list[tuple[Reader, tuple[str, ...]]]:
    """Every reader that recognises a folder with these files, with the files that it reads."""
    found = ((reader, reader.find(names)) for reader in READERS.values())
    return [(reader, files) for reader, files in found if files]


def find_reader(names: Collection[str], where: str) -> tuple[Reader, tuple[str, ...]]:
    """The one reader for a folder with these files, and the files that it reads.

    Args:
        names: paths of all files below the folder, relative, with "/".
        where: the folder, for messages.

    Raises:
        SAEFormatError: none fits, or several do.
    """
    matches = matching_readers(names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        kinds = " and ".join(f"{reader.name} ({reader.layout})" for reader, _ in matches)
        raise SAEFormatError(f"{where} fits several formats: {kinds}; keep the files of one SAE per folder")
    for kind, file in UNREADABLE.items():
        found = next((name for name in sorted(names) if file.fullmatch(name)), None)
        if found is not None:
            raise SAEFormatError(
                f"{where} holds {found}: {kind}; use one that reads the residual stream token by token"
            )
    known = "; ".join(f"{reader.name}: {reader.layout}" for reader in READERS.values())
    raise SAEFormatError(f"no known SAE format in {where}, which holds {summary(names)}. Known formats: {known}")


def summary(names: Collection[str], limit: int = 8) -> str:
    """The first few of `names`, and how many more there are."""
    shown = sorted(names, key=lambda name: (name.count("/"), name))[:limit]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(shown) or "no files") + more


# No model has layers of more than four digits; and what `int` reads is bounded.
# TransformerLens: the residual stream after block L, or before it (which is the one after block L - 1).
RESID_POST = re.compile(r"blocks\.(\d{1,4})\.hook_resid_post", re.ASCII)
RESID_PRE = re.compile(r"blocks\.(\d{1,4})\.hook_resid_pre", re.ASCII)

# Hugging Face: a decoder layer as a module, or its output, under the names that the model families use.
LAYER_OUTPUT = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h)\.(\d{1,4})(?:\.output)?", re.ASCII)


def layer_of_hook(name: str) -> int:
    """The 0-based decoder layer whose output the hook point `name` is.

    "blocks.9.hook_resid_post", "blocks.10.hook_resid_pre" and "model.layers.9.output" are the same tensor: what
    layer 9 hands to layer 10.

    Raises:
        SAEFormatError: `name` is another place (MLP, attention, embedding, ...).
    """
    if not isinstance(name, str):
        raise SAEFormatError(f"hook name is {name!r:.80}; expected text such as 'blocks.9.hook_resid_post'")
    if match := RESID_POST.fullmatch(name) or LAYER_OUTPUT.fullmatch(name):
        return int(match[1])
    if (match := RESID_PRE.fullmatch(name)) and int(match[1]) >= 1:
        return int(match[1]) - 1
    raise SAEFormatError(
        f"this SAE reads {name!r:.80}, which is not the output of a decoder layer; only residual-stream SAEs are "
        "supported ('blocks.L.hook_resid_post', or 'blocks.L.hook_resid_pre' with L >= 1)"
    )
