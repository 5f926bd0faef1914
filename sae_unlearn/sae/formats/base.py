"""Interface of a format's reader, the registry of readers, and names of hook points."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_unlearn.checks import check_is
from sae_unlearn.errors import SAEFormatError, UnlearnError


@dataclass(frozen=True)
class SAEFolder:
    """Input of a reader: a local folder with the files of one SAE.

    Attributes:
        path (Path): The folder on this machine with the SAE's files.
        files (tuple[str, ...]): The files that the reader's `find` returned, relative to `path`.
        label (str): Where the SAE comes from as people write it, e.g. "google/gemma-scope-2b-pt-res/layer_3/width_16k";
            formats without a configuration file tell the layer and the place only there.
    """

    path: Path
    files: tuple[str, ...]
    label: str

    def has(self, name: str) -> bool:
        """Return True if the optional file `name` is there.

        Args:
            name (str): The file, relative to `path`.
        """
        return name in self.files

    def file(self, name: str) -> Path:
        """Return the path of one of `files` on this machine.

        Args:
            name (str): The file, relative to `path`.
        """
        return self.path / name


@dataclass(frozen=True, eq=False)
class SAEWeights:
    """Output of a reader: folded weights in the file's dtype, or in float64 if folding changed them.

    Attributes:
        W_enc, b_enc, W_dec, b_dec (Tensor): As in `SparseAutoencoder`.
        weights_file (Path): The file of the tensors. Its sha256 identifies the SAE.
        architecture (str): As in `SparseAutoencoder`.
        threshold (Tensor, *optional*): As in `SparseAutoencoder`.
        k, layer (int, *optional*): As in `SparseAutoencoder`.
        neuronpedia_id (str, *optional*): Id of its page at neuronpedia.org, "<model>/<layer and set>", if the files
            name one.
        input_norm (str, *optional*): As in `SparseAutoencoder`.
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
"""Function from the paths of all files below a folder to those of the SAE; None for another format."""


@dataclass(frozen=True)
class Reader:
    """One published format.

    Attributes:
        name (str): Short name, e.g. "saelens"; kept in `SparseAutoencoder.source["format"]`.
        layout (str): The files, in words, for error messages.
        find (Find): Function from the paths of all files below a folder (relative, with "/") to the ones to fetch and
            read, or None if the folder has another format.
        read (Callable[[SAEFolder], SAEWeights]): Function from a folder with these files to the folded weights.
    """

    name: str
    layout: str
    find: Find
    read: Callable[[SAEFolder], SAEWeights]


UNREADABLE = {
    "a temporal SAE, whose features depend on earlier tokens": re.compile(r"latest_ckpt\.safetensors"),
    "an SAE of the attention heads' outputs, not of the residual stream": re.compile(r"[\w.+-]+_Hcat_z_[\w.+-]+\.pt"),
}
"""SAEs of other purposes that are refused, with the names of their files."""

READERS: dict[str, Reader] = {}


def needs(*required: str, optional: tuple[str, ...] = ()) -> Find:
    """Return a `find` for fixed file names: all `required`, and those of `optional` that exist.

    Args:
        required (str): Files that the format needs, relative to the folder of the SAE.
        optional (tuple of str, *optional*, defaults to ()): Files that it reads if they exist.
    """

    def find(names: Collection[str]) -> tuple[str, ...] | None:
        if not all(name in names for name in required):
            return None
        return required + tuple(name for name in optional if name in names)

    return find


def one_of(file: re.Pattern[str]) -> Find:
    """Return a `find` for formats with a file per layer: the only file that matches, None for several.

    Args:
        file (Pattern): Pattern of the whole name of the file.
    """

    def find(names: Collection[str]) -> tuple[str, ...] | None:
        files = tuple(name for name in names if file.fullmatch(name))
        return files if len(files) == 1 else None

    return find


def register_reader(reader: Reader) -> None:
    """Register a format for `SparseAutoencoder.from_pretrained`.

    Args:
        reader (Reader): The format.

    Raises:
        UnlearnError: If it is not a `Reader`, or a reader of that name is registered.
    """
    check_is(reader, Reader, "reader")
    if reader.name in READERS:
        raise UnlearnError(f"reader: the name {reader.name!r} is registered already. Pass another name.")
    READERS[reader.name] = reader


def matching_readers(names: Collection[str]) -> list[tuple[Reader, tuple[str, ...]]]:
    """Return every reader that recognizes a folder with these files, with the files that it reads."""
    found = ((reader, reader.find(names)) for reader in READERS.values())
    return [(reader, files) for reader, files in found if files]


def find_reader(names: Collection[str], where: str) -> tuple[Reader, tuple[str, ...]]:
    """Return the one reader for a folder with these files, and the files that it reads.

    Args:
        names (Collection[str]): Paths of all files below the folder, relative, with "/".
        where (str): The name of the folder in errors.

    Raises:
        SAEFormatError: If no reader or several fit.
    """
    matches = matching_readers(names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        kinds = " and ".join(f"{reader.name} ({reader.layout})" for reader, _ in matches)
        raise SAEFormatError(f"{where} fits several formats: {kinds}. Keep the files of one SAE per folder.")
    for kind, file in UNREADABLE.items():
        found = next((name for name in sorted(names) if file.fullmatch(name)), None)
        if found is not None:
            raise SAEFormatError(
                f"{where} holds {found}: {kind}. Use one that reads the residual stream token by token."
            )
    known = "; ".join(f"{reader.name}: {reader.layout}" for reader in READERS.values())
    raise SAEFormatError(f"No known SAE format in {where}, which holds {summary(names)}. Known formats: {known}.")


def summary(names: Collection[str], limit: int = 8) -> str:
    """Return the first few of `names`, and how many more there are."""
    shown = sorted(names, key=lambda name: (name.count("/"), name))[:limit]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(shown) or "no files") + more


# At most four digits: no model has more layers, and a long number is slow to parse.
# TransformerLens: the residual stream after block L, or before it (the same as after block L - 1).
RESID_POST = re.compile(r"blocks\.(\d{1,4})\.hook_resid_post", re.ASCII)
RESID_PRE = re.compile(r"blocks\.(\d{1,4})\.hook_resid_pre", re.ASCII)

# Hugging Face: a decoder layer as a module, or its output, under the names that the model families use.
LAYER_OUTPUT = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h)\.(\d{1,4})(?:\.output)?", re.ASCII)


def layer_of_hook(name: str) -> int:
    """Return the 0-based decoder layer whose output is the hook point `name`.

    "blocks.9.hook_resid_post", "blocks.10.hook_resid_pre" and "model.layers.9.output" are the same tensor: the output
    of layer 9.

    Raises:
        SAEFormatError: If `name` is another place (MLP, attention, embedding, ...).
    """
    if not isinstance(name, str):
        raise SAEFormatError(f"The hook name is {name!r:.80}: expected text such as 'blocks.9.hook_resid_post'.")
    if match := RESID_POST.fullmatch(name) or LAYER_OUTPUT.fullmatch(name):
        return int(match[1])
    if (match := RESID_PRE.fullmatch(name)) and int(match[1]) >= 1:
        return int(match[1]) - 1
    raise SAEFormatError(
        f"this SAE reads {name!r:.80}, which is not the output of a decoder layer; only residual-stream SAEs are "
        "supported ('blocks.L.hook_resid_post', or 'blocks.L.hook_resid_pre' with L >= 1)."
    )
