"""Loading of a command's inputs: models, adapters, SAEs and texts."""

import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_unlearn.checks import check_integer
from sae_unlearn.cli.document_files import READABLE, files_of, read_folder, read_html, read_pdf
from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.rows import load_split, read_text, rows_of_file


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sae_unlearn.guardrail import SAEGuardrailConfig
    from sae_unlearn.sae import SparseAutoencoder


DEMO = "demo"


def load_model(
    name: str, revision: str | None = None, device: str | None = None, dtype: str = "auto"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its tokenizer, without running code from the repository.

    Args:
        name (str): "demo", a local folder, or a Hub id.
        revision (str, *optional*): Branch, tag or commit.
        device (str, *optional*): Device of the model, or "auto" for several. Defaults to CUDA if available.
        dtype (str, *optional*, defaults to "auto"): Name of a torch dtype, or "auto" for that of the file.

    Raises:
        OSError: If transformers cannot find it.
        UnlearnError: If it is the folder of something else, or this machine has no such device.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae_unlearn.backbone.distributed import join_launch

    _check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    join_launch(cpu=device == "cpu")
    if name == DEMO:
        from sae_unlearn.demo import load_demo_model

        model, tokenizer = load_demo_model(torch.float32 if dtype == "auto" else getattr(torch, dtype))
        return model.to("cpu" if device == "auto" else device), tokenizer
    placed = {"device_map": "auto"} if device == "auto" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **placed
        )
    except (OSError, ValueError) as error:  # offline, the message of transformers does not name it
        check_kind("model", name, MODEL)
        raise OSError(f"model={name!r}: {error}") from error
    return (model if placed else model.to(device)).eval(), tokenizer


def base_name(config: "SAEGuardrailConfig") -> str:
    """Return the name of a guardrail's base model as commands take it; "MODEL" if it is not recorded."""
    from sae_unlearn.cards.provenance import DEMO_MODEL_NAME

    name = config.base_model_name_or_path
    return DEMO if name == DEMO_MODEL_NAME else str(name or "MODEL")


ADAPTER, SAE, MODEL = "a guardrail or another adapter", "an SAE", "a model"
KINDS = {
    "adapter_config.json": ADAPTER,
    "sae_weights.safetensors": SAE,
    "tokenizer_config.json": MODEL,  # config.json is in folders of some SAEs, too
    "generation_config.json": MODEL,
}
"""File of a folder -> the kind of thing that the folder holds; the first one counts."""


def check_kind(option: str, name: str, wanted: str) -> None:
    """Raise if a local folder, which could not be loaded, is of another kind.

    Args:
        option (str): Name of the argument, for the error.
        name (str): Its value.
        wanted (str): One of the values of `KINDS`.

    Raises:
        UnlearnError: If it holds another kind of thing.
    """
    folder = Path(name).expanduser()
    found = [kind for file, kind in KINDS.items() if (folder / file).is_file()]
    if found and wanted not in found:
        raise UnlearnError(f"{option}={name!r:.120}: expected {wanted}, got the folder of {found[0]}. Pass another.")


def _check_device(device: str | None) -> None:
    import torch

    if device in (None, "auto"):
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnlearnError(
            f"--device {device:.40}: expected a device of this machine, got {str(error).splitlines()[0]:.120} Pass cpu."
        ) from error


def with_adapter(
    model: "PreTrainedModel", source: str, revision: str | None = None, subfolder: str | None = None
) -> "nn.Module":
    """Attach a guardrail, any other PEFT adapter, a bundle, or one member of it to a model.

    Args:
        model ('PreTrainedModel'): A causal language model.
        source (str): Folder or Hub id of the adapter.
        revision (str, *optional*): Branch, tag or commit.
        subfolder (str, *optional*): Folder inside `source`; for a bundle, the name of a member.

    Raises:
        OSError: If the adapter cannot be found.
        UnlearnError: If it is malformed, or does not belong to the model.
    """
    from peft import PeftConfig, PeftModel

    from sae_unlearn.files.untrusted import clean_subfolder
    from sae_unlearn.guardrail import SAEGuardrailConfig, attach_bundle, attach_guardrail
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    inside = clean_subfolder(subfolder)
    folder = GuardrailFolder.open(source, revision=revision)
    if inside and folder.find_bundle() is not None:
        return attach_bundle(model, folder, names=[inside])
    try:
        kind = PeftConfig.from_pretrained(source, revision=folder.commit or revision, subfolder=inside or None)
    except ValueError as error:
        if not inside and folder.find_bundle() is not None:
            return attach_bundle(model, folder)
        check_kind("adapter", source, ADAPTER)
        named = f"{source} --adapter-subfolder {inside}" if inside else source
        raise FileNotFoundError(f"--adapter {named} is neither a folder with an adapter nor one on the Hub.") from error
    if isinstance(kind, SAEGuardrailConfig):
        return attach_guardrail(model, folder.member(inside))
    return PeftModel.from_pretrained(model, source, revision=revision, subfolder=inside or None).eval()


def load_sae(
    name: str, subfolder: str | None = None, revision: str | None = None, model: str | None = None
) -> "SparseAutoencoder":
    """Load an SAE.

    Args:
        name (str): "demo", a local folder, a Hub id, RELEASE/ID of SAELens, or "auto" for the suggested one of `model`.
        subfolder (str, *optional*): Folder inside it.
        revision (str, *optional*): Branch, tag or commit.
        model (str, *optional*): Name of the model, for "auto".
    """
    from sae_unlearn.sae import SparseAutoencoder
    from sae_unlearn.sae.choice import AUTO, about
    from sae_unlearn.sae.directory.lookup import suggest

    if name == AUTO and model is not None:
        if subfolder or revision:
            raise UnlearnError(
                "--sae auto chooses repository and folder; leave out --sae-subfolder and --sae-revision."
            )
        if model == DEMO:
            print("sae='auto' takes the demo's own SAE: output of layer 9.")
            name = DEMO
        else:
            chosen = suggest(model)
            print(about(chosen))
            name = chosen.name
    if name == DEMO:
        from sae_unlearn.demo import load_demo_sae

        return load_demo_sae()
    try:
        return SparseAutoencoder.from_pretrained(name, subfolder=subfolder, revision=revision)
    except (UnlearnError, OSError):
        check_kind("sae", name, SAE)
        raise


def load_saes(names: Iterable[str], model: str) -> "list[SparseAutoencoder]":
    """Load the SAEs of a search; "auto" stands for suggested ones of several layers.

    Args:
        names (Iterable[str]): As for `load_sae`.
        model (str): Name of the model.
    """
    from sae_unlearn.sae import SparseAutoencoder
    from sae_unlearn.sae.choice import AUTO, about
    from sae_unlearn.sae.directory.lookup import suggest_layers

    found = []
    for name in names:
        if name != AUTO or model == DEMO:
            found.append(load_sae(name, model=model))
            continue
        for chosen in suggest_layers(model):
            print(about(chosen))
            found.append(SparseAutoencoder.from_pretrained(chosen.name))
    return found


SUFFIXES = READABLE


def read_texts(source: str, column: str = "text", split: str | None = None) -> Iterable[Any]:
    """Return the texts of a file, or the rows of a dataset.

    Args:
        source (str): A `.txt` or `.md` file (paragraphs with blank lines between them), `.json` (a list of strings, or
            of objects with `column`), `.jsonl` (one of these a line), `.csv`, `.tsv` (with a header), `.parquet`,
            `.pdf`, `.html`, a folder of documents, a folder that `datasets` reads, or the id of a dataset on the Hub.
        column (str, *optional*, defaults to "text"): The column, or key, that holds the text.
        split (str, *optional*): Split of a dataset. Defaults to "train".

    Raises:
        FileNotFoundError: If the file does not exist.
        UnlearnError: If it does not hold texts in that column.
        ImportError: If it is a dataset and `datasets` is not installed. The error names the extra.
    """
    path = Path(source).expanduser()
    files = files_of(path) if path.is_dir() else None
    if files is not None:
        return read_folder(path, files, lambda each: _read_file(each, column))
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UnlearnError(f"{source} ends in {path.suffix!r}: expected one of {', '.join(SUFFIXES)}.")
        texts = _read_file(path, column)
        if not texts:
            raise UnlearnError(f"{source} holds no texts.")
        return texts
    if source.startswith(("http://", "https://")):
        raise UnlearnError(
            f"{source:.120}: expected a file, a folder or a data set, got an address. Download it first."
        )
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise FileNotFoundError(f"The file {source} does not exist.")
    return _read_dataset(source, column, split)


def drawn(rows: list[Any], limit: int | None, seed: int = 0) -> list[Any]:
    """Return at most `limit` of the rows, in their order; the same seed draws the same ones.

    Raises:
        UnlearnError: If `limit` is less than 1.
    """
    if limit is not None:
        check_integer("--limit", limit, 1)
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def _read_file(path: Path, column: str) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".pdf":
        return read_pdf(path)
    if kind in (".html", ".htm"):
        return read_html(path)
    if kind in (".txt", ".md"):
        return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", read_text(path)) if paragraph.strip()]
    return [_text(row, number, path, column) for number, row in enumerate(rows_of_file(path), 1)]


def _text(row: Any, number: int, path: Path, column: str) -> str:
    text = row.get(column) if isinstance(row, dict) else row
    if isinstance(text, str):
        return text
    if isinstance(row, dict) and column not in row:
        columns = ", ".join(map(str, row))
        asks = bool({"prompt", "question"} & {*row})
        hint = "Facts need prompt and answers, choices need question, choices and answer." if asks else ""
        raise UnlearnError(f"Row {number} of {path} has no {column!r}, only {columns}. {hint or 'Pass --text-column.'}")
    kind = "nothing" if text is None else f"a {type(text).__name__}"
    raise UnlearnError(f"Row {number} of {path} is {kind}: expected a text.")


def _read_dataset(source: str, column: str, split: str | None) -> Iterable[Any]:
    found = load_split(source, split=split or "train")
    if column not in found.column_names:
        columns = ", ".join(found.column_names)
        raise UnlearnError(f"{source} has no column {column!r}, only {columns}. Pass --text-column.")
    return found
