"""SAEs of a sub-layer's output are refused by name: in every format, from memory, by the directory, by commands."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from family_folders import (
    write_dictionary,
    write_llama_scope,
    write_llama_scope_r1,
    write_openai,
    write_qwen_scope,
    write_sparsify,
)
from sae_folders import tensors, write_gemma_scope, write_gemma_scope_2, write_saelens

from sae_unlearn.cli.main import main
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder
from sae_unlearn.sae.formats.base import READERS


def same(place):
    return {"hook_point_in": place, "hook_point_out": place}


WRITTEN = {
    "saelens mlp": lambda at: write_saelens(at, tensors(), hook_name="blocks.3.hook_mlp_out"),
    "saelens attention": lambda at: write_saelens(at, tensors(), hook_name="blocks.3.hook_attn_out"),
    "saelens heads": lambda at: write_saelens(at, tensors(), hook_name="blocks.3.attn.hook_z"),
    "gemma_scope mlp": lambda at: write_gemma_scope(at / "gemma-scope-2b-pt-mlp/layer_3/width_16k/canonical"),
    "gemma_scope attention": lambda at: write_gemma_scope(at / "gemma-scope-9b-pt-att/layer_3/width_16k/canonical"),
    "gemma_scope_2 mlp": lambda at: write_gemma_scope_2(at / "mlp_out/layer_9_width_16k_l0_small"),
    "gemma_scope_2 attention": lambda at: write_gemma_scope_2(at / "attn_out_all/layer_9_width_16k_l0_small"),
    "llama_scope mlp": lambda at: write_llama_scope(at, **same("blocks.9.hook_mlp_out")),
    "llama_scope attention": lambda at: write_llama_scope(at, **same("blocks.9.hook_attn_out")),
    "llama_scope_r1 mlp": lambda at: write_llama_scope_r1(at, **same("blocks.9.hook_mlp_out")),
    "llama_scope_r1 attention": lambda at: write_llama_scope_r1(at, **same("blocks.9.hook_attn_out")),
    "sparsify mlp": lambda at: write_sparsify(at / "layers.9.mlp"),
    "sparsify attention": lambda at: write_sparsify(at / "layers.9.self_attn"),
    "dictionary_learning mlp": lambda at: write_dictionary(at, submodule_name="mlp_out_layer_9"),
    "dictionary_learning attention": lambda at: write_dictionary(at, submodule_name="attn_out_layer_9"),
    "qwen_scope mlp": lambda at: write_qwen_scope(at / "SAE-MLP-Qwen3-8B-Base-W64K-L0_50") / "layer9.sae.pt",
    "openai mlp": lambda at: write_openai(at / "resid_delta_mlp_v5_32k/autoencoders") / "6.pt",
    "openai attention": lambda at: write_openai(at / "resid_delta_attn_v5_32k/autoencoders") / "6.pt",
}
"""What writes an SAE of a sub-layer, by format and place. Goodfire published SAEs of the residual stream only."""
WORDS = r"mlp|attn|att SAE|hook_z|self_attn|MLP"


def test_every_format_is_tried():
    assert {name.split()[0] for name in WRITTEN} == {*READERS} - {"goodfire"}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_reader_refuses_it_and_names_the_place(tmp_path, name):
    path = WRITTEN[name](tmp_path) or tmp_path
    subfolder = path.name if path.is_file() else None
    folder = path.parent if path.is_file() else path
    with pytest.raises(SAEFormatError, match=WORDS):
        SparseAutoencoder.from_pretrained(folder, subfolder=subfolder)


@pytest.mark.parametrize("place", ["blocks.3.hook_mlp_out", "blocks.3.hook_attn_out"])
def test_an_sae_in_memory_is_refused(place):
    from sae_unlearn.sae.loading import read_saelens

    weights = tensors()
    config = {"architecture": "jumprelu", "d_in": 6, "d_sae": 10, "metadata": {"hook_name": place}}
    sae = SimpleNamespace(cfg=SimpleNamespace(to_dict=lambda: config), state_dict=lambda: weights)
    with pytest.raises(SAEFormatError, match=place.rpartition(".")[2]):
        read_saelens(sae)


@pytest.mark.parametrize("command", ["fit", "scout", "train"])
def test_a_command_refuses_it_before_the_model_is_loaded(tmp_path, capsys, command):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(f"text number {i} of the corpus" for i in range(50)))
    cities = str(Path(__file__).parents[2] / "examples" / "cities.csv")
    name = "gemma-scope-2b-pt-mlp-canonical/layer_12/width_16k/canonical"
    corpora = ["--forget", str(texts), "--retain", str(texts)]
    given = {
        "fit": ["--sae", name, *corpora, "--output", str(tmp_path / "out")],
        "scout": ["--saes", name, *corpora],
        "train": ["--sae", name, "--targets", cities, "--candidates", cities, "--output", str(tmp_path / "out")],
    }
    assert main([command, "--model", "no-such-model/at-all", *given[command]]) == 2
    assert "the output of an MLP" in capsys.readouterr().err
