"""What commands read: models, SAEs and folders by the names that a user types."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sae_unlearn.sae import SparseAutoencoder

DEMO = "demo"
DTYPES = ("auto", "float32", "bfloat16", "float16")
NO_ADAPTER = "--subfolder names a folder of the adapter's; give --adapter."


def add_model_arguments(parser: argparse.ArgumentParser, revision: str = "--revision") -> None:
    """The options of `load_model` besides the model's name."""
    parser.add_argument(revision, help="branch, tag or commit of the model")
    parser.add_argument("--device", help="such as cpu, cuda:0, or auto to spread it (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as they are stored)")


def add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which adapter is put on the model."""
    parser.add_argument("--adapter", help="folder or Hub id of a guardrail, a bundle, or a PEFT adapter such as a LoRA")
    parser.add_argument("--adapter-revision", help="branch, tag or commit of the adapter")
    parser.add_argument("--subfolder", help="folder inside it: a member of a bundle")


def load_model(
    name: str, revision: str | None = None, device: str | None = None, dtype: str = "auto"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model and its tokenizer: "demo", a local folder, or a Hub id. No code of theirs is run.

    Raises:
        OSError: there is none, as transformers says it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae_unlearn.backbone.distributed import join_launch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    join_launch(cpu=device == "cpu")
    if name == DEMO:
        from sae_unlearn.demo import load_demo_model

        model, tokenizer = load_demo_model(torch.float32 if dtype == "auto" else getattr(torch, dtype))
        return model.to("cpu" if device == "auto" else device), tokenizer
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    placed = {"device_map": "auto"} if device == "auto" else {}
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **placed
    )
    return (model if placed else model.to(device)).eval(), tokenizer


def load_sae(name: str, subfolder: str | None = None, revision: str | None = None) -> "SparseAutoencoder":
    """An SAE: "demo", a local folder, or a Hub id."""
    from sae_unlearn.sae import SparseAutoencoder

    if name == DEMO:
        from sae_unlearn.demo import load_demo_sae

        return load_demo_sae()
    return SparseAutoencoder.from_pretrained(name, subfolder=subfolder, revision=revision)


def output_folder(name: str) -> Path:
    """The folder to write into, made before anything long is begun.

    Raises:
        NotADirectoryError: it is a file.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"--output {name} is a file; give a folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path
