"""The families' own packages, and SAELens' loaders for them, as oracles on the same folders."""

import sys

import pytest
import torch
from family_folders import (
    NORM_R1,
    QWEN,
    dictionary_state,
    goodfire_state,
    llama_scope_r1_state,
    write_dictionary,
    write_goodfire,
    write_llama_scope,
    write_llama_scope_r1,
    write_qwen_scope,
    write_sparsify,
)
from oracles import oracle
from sae_folders import D_IN, D_SAE, residual, write_gemma_scope, write_gemma_scope_2

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder


H = residual(128, dtype=torch.float64)


def load(folder, **kwargs):
    return SparseAutoencoder.from_pretrained(folder, dtype=torch.float64, **kwargs)


def agree(ours, a, output, h=H, atol=1e-6):
    assert 0 < (a > 0).sum() < a.numel()
    torch.testing.assert_close(ours.encode(h), a.double(), rtol=0, atol=atol)
    torch.testing.assert_close(ours(h), output.double(), rtol=0, atol=atol)


def test_sparsify_itself(tmp_path):
    sparsify = oracle("sparsify.sparse_coder")
    write_sparsify(tmp_path / "layers.9")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.9").double()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        values, indices, _ = theirs.encode(H)
        output = theirs.decode(values, indices)
    agree(load(tmp_path / "layers.9"), torch.zeros(len(H), D_SAE).double().scatter(-1, indices, values), output)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dictionary", "AutoEncoder"),
        ("dictionary", "AutoEncoderNew"),
        ("dictionary", "GatedAutoEncoder"),
        ("dictionary", "JumpReluAutoEncoder"),
        ("trainers.top_k", "AutoEncoderTopK"),
        ("trainers.batch_top_k", "BatchTopKSAE"),
        ("trainers.matryoshka_batch_top_k", "MatryoshkaBatchTopKSAE"),
    ],
)
def test_dictionary_learning_itself(tmp_path, module, name):
    module = oracle(f"dictionary_learning.{module}")
    write_dictionary(tmp_path, name)
    theirs = getattr(module, name).from_pretrained(tmp_path / "ae.pt").double()
    with torch.no_grad():
        features = theirs.encode(H)
        agree(load(tmp_path), features, theirs.decode(features), atol=1e-5)  # its loader works in float32


@pytest.fixture
def loaders(monkeypatch, tmp_path):
    """SAELens' loaders, which find the files of "repository/name" below `tmp_path` instead of on the Hub."""
    oracle("sae_lens")
    module = sys.modules["sae_lens.loading.pretrained_sae_loaders"]

    def local(repo_id, filename, subfolder=None, force_download=False):
        return str(tmp_path / repo_id / (subfolder or "") / filename)

    monkeypatch.setattr(module, "hf_hub_download", local)
    return module


def saelens_sae(loaders, cfg, w):
    """The SAE that SAELens makes of what a loader of its found."""
    sae_lens = oracle("sae_lens")
    cfg = loaders.handle_config_defaulting(cfg)
    cls = sae_lens.SAE.get_sae_class_for_architecture(cfg["architecture"])
    sae = cls(cls.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg))
    sae.process_state_dict_for_loading(w)
    sae.load_state_dict(w)
    return sae


def test_saelens_on_gemma_scope(tmp_path, loaders):
    repository, path = "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_142"
    folder = write_gemma_scope(tmp_path / repository / path)
    sizes = {"dtype": "float64", "d_in": D_IN, "d_sae": D_SAE}
    cfg, w, _ = loaders.gemma_2_sae_huggingface_loader(repository, path, cfg_overrides=sizes)
    theirs, ours = saelens_sae(loaders, cfg, w), load(folder)
    assert cfg["hook_name"] == f"blocks.{ours.layer}.hook_resid_post"
    features = theirs.encode(H)
    agree(ours, features, theirs.decode(features))


@pytest.mark.parametrize("stated", [True, False])
def test_saelens_on_gemma_scope_2(tmp_path, loaders, monkeypatch, stated):
    """With its configuration, and without, where both take the place from the path."""
    repository, path = "google/gemma-scope-2-270m-pt", "resid_post/layer_9_width_16k_l0_small"
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-270m",
        "hf_hook_point_in": "model.layers.9.output",
    }
    folder = write_gemma_scope_2(tmp_path / repository / path, config=config if stated else None)
    if not stated:
        monkeypatch.setattr(loaders, "EntryNotFoundError", FileNotFoundError)  # what a file here says that is not there
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda repo, file: {"w_enc": [D_IN, D_SAE]})
    cfg, w, _ = loaders.gemma_3_sae_huggingface_loader(repository, path, cfg_overrides={"dtype": "float64"})
    theirs, ours = saelens_sae(loaders, cfg, w), load(folder)
    assert cfg["hook_name"] == f"blocks.{ours.layer}.hook_resid_post"
    features = theirs.encode(H)
    agree(ours, features, theirs.decode(features))


def test_saelens_on_qwen_scope(tmp_path, loaders, monkeypatch):
    write_qwen_scope(tmp_path / QWEN, layers=(4, 9))
    monkeypatch.setitem(loaders.QWEN_SCOPE_MODEL_INFO, "Qwen3-8B-Base", ("Qwen/Qwen3-8B-Base", D_IN))
    cfg, w, _ = loaders.qwen_scope_sae_huggingface_loader(QWEN, "layer9.sae.pt", force_download=False)
    ours = load(tmp_path / QWEN, subfolder="layer9.sae.pt")
    assert (cfg["architecture"], cfg["activation_fn_kwargs"]["k"], cfg["d_sae"]) == ("topk", ours.k, ours.d_sae)
    assert (cfg["hook_name"], cfg["apply_b_dec_to_input"]) == (f"blocks.{ours.layer}.hook_resid_post", False)
    assert all(torch.equal(getattr(ours, name), w[name].double()) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))


@pytest.mark.parametrize(
    "name", ["GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"]
)
def test_saelens_on_dictionary_learning(tmp_path, loaders, name):
    """All but AutoEncoder, whose decoder SAELens does not normalise, and AutoEncoderNew, whose bias it misses."""
    folder = write_dictionary(tmp_path / "lm_sae/run", name, buffer={"ctx_len": 128})
    cfg, w, _ = loaders.dictionary_learning_sae_huggingface_loader_1(
        "lm_sae", "run", cfg_overrides={"dtype": "float64"}
    )
    theirs = saelens_sae(loaders, cfg, w)
    features = theirs.encode(H)
    agree(load(folder), features, theirs.decode(features))


def test_saelens_on_llama_scope_agrees_where_decoder_rows_have_unit_norm(tmp_path, loaders):
    """SAELens leaves the decoder's norms out; it gives features in units of the scaled input, s times ours."""
    w = dictionary_state("AutoEncoderNew", torch.float64)
    w["decoder.weight"] = w["decoder.weight"] / w["decoder.weight"].norm(dim=0)
    folder = write_llama_scope(tmp_path / "LXR/L9R", w)
    cfg, theirs, _ = loaders.llama_scope_sae_huggingface_loader("LXR", "L9R", cfg_overrides={"dtype": "float64"})
    s = D_IN**0.5 / 17.125
    pre = s * H @ theirs["W_enc"] + theirs["b_enc"]
    features = pre * (pre > theirs["threshold"])
    output = (features @ theirs["W_dec"] + theirs["b_dec"]) / s
    ours = load(folder)
    assert cfg["hook_name"] == f"blocks.{ours.layer}.hook_resid_post"
    agree(ours, features / s, output)


@pytest.mark.parametrize("by_norm", [True, False])
def test_saelens_on_llama_scope_r1_with_its_scale_folded(tmp_path, loaders, by_norm):
    """SAELens leaves s to its user, and the decoder's norms out, which are therefore 1 where they count."""
    state = llama_scope_r1_state(torch.float64)
    if by_norm:
        state["decoder.weight"] = state["decoder.weight"] / state["decoder.weight"].norm(dim=0)
    folder = write_llama_scope_r1(tmp_path / "R1/L9R", state, sparsity_include_decoder_norm=by_norm)
    overrides = {"dtype": "float64", "d_sae": D_SAE}  # where a factor of its own makes it 10.0
    cfg, w, _ = loaders.llama_scope_r1_distill_sae_huggingface_loader("R1", "L9R", cfg_overrides=overrides)
    theirs, ours = saelens_sae(loaders, cfg, w), load(folder)
    assert cfg["hook_name"] == f"blocks.{ours.layer}.hook_resid_post"
    s = D_IN**0.5 / state[NORM_R1].item()
    theirs.fold_activation_norm_scaling_factor(s)
    features = theirs.encode(H)
    agree(ours, features / s, theirs.decode(features))


@pytest.mark.parametrize(
    ("loader", "infix", "repository", "suffix"),
    [
        ("get_goodfire_huggingface_loader", "_linear", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", ".pth"),
        ("get_goodfire_huggingface_loader", "_linear", "Goodfire/Llama-3.3-70B-Instruct-SAE-l50", ".pt"),
        ("deepseek_r1_sae_huggingface_loader", "", "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19", ".pt"),
    ],
)
def test_saelens_on_goodfire_and_qresearch(tmp_path, loaders, loader, infix, repository, suffix):
    file = repository.partition("/")[2] + suffix
    folder = write_goodfire(tmp_path / repository, goodfire_state(torch.float64, infix), file)
    sizes = {"dtype": "float64", "d_in": D_IN, "d_sae": D_SAE}
    cfg, w, _ = getattr(loaders, loader)(repository, file, cfg_overrides=sizes)
    theirs, ours = saelens_sae(loaders, cfg, w), load(folder)
    assert cfg["hook_name"] == f"blocks.{ours.layer}.hook_resid_post"
    features = theirs.encode(H)
    agree(ours, features, theirs.decode(features))


SAELENS = {
    "standard": ("StandardSAEConfig", "StandardSAE", {}),
    "jumprelu": ("JumpReLUSAEConfig", "JumpReLUSAE", {}),
    "gated": ("GatedSAEConfig", "GatedSAE", {}),
    "topk": ("TopKSAEConfig", "TopKSAE", {"k": 3}),
}


def saelens_object(kind, hook="blocks.9.hook_resid_post", dtype="float64", **options):
    """A random SAE of SAELens in memory."""
    sae_lens = oracle("sae_lens")
    config, cls, settings = SAELENS[kind]
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook)
    cfg = getattr(sae_lens, config)(d_in=D_IN, d_sae=D_SAE, dtype=dtype, metadata=metadata, **(settings | options))
    sae = getattr(sae_lens, cls)(cfg)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * (0.3 if name == "r_mag" else 1.0))
    return sae


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", SAELENS)
def test_a_saelens_object_is_taken_over(kind, subtract, norm):
    theirs = saelens_object(kind, apply_b_dec_to_input=subtract, normalize_activations=norm)
    ours = SparseAutoencoder.from_saelens(theirs, dtype=torch.float64)
    assert (ours.architecture, ours.layer, ours.k) == (kind, 9, 3 if kind == "topk" else None)
    features = theirs.encode(H)
    agree(ours, features, theirs.decode(features), atol=1e-9)
    before = ours.W_dec.clone()
    with torch.no_grad():
        theirs.W_dec.zero_()
    assert torch.equal(ours.W_dec, before)


@pytest.mark.parametrize("kind", ["BatchTopK", "JumpReLU", "TopK", "Standard", "MatryoshkaBatchTopK"])
def test_a_saelens_object_in_training_is_taken_over_as_it_would_be_saved(tmp_path, kind):
    sae_lens = oracle("sae_lens")
    settings = {"BatchTopK": {"k": 2.5}, "MatryoshkaBatchTopK": {"k": 2.5, "matryoshka_widths": [4]}, "TopK": {"k": 3}}
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")
    theirs = getattr(sae_lens, f"{kind}TrainingSAE")(
        config(d_in=D_IN, d_sae=D_SAE, dtype="float64", **settings.get(kind, {}))
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.5)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
    theirs.save_inference_model(tmp_path)
    saved = sae_lens.SAE.load_from_disk(tmp_path)
    features = saved.encode(H)
    agree(SparseAutoencoder.from_saelens(theirs, dtype=torch.float64), features, saved.decode(features))


def test_a_saelens_object_that_cannot_be_kept_is_refused():
    for hook in ("blocks.3.hook_mlp_out", "blocks.3.hook_attn_out", "blocks.3.attn.hook_z"):
        with pytest.raises(SAEFormatError, match=hook):
            SparseAutoencoder.from_saelens(saelens_object("standard", hook=hook))
    with pytest.raises(SAEFormatError, match="constant_norm_rescale"):
        SparseAutoencoder.from_saelens(saelens_object("standard", normalize_activations="constant_norm_rescale"))
    assert SparseAutoencoder.from_saelens(saelens_object("standard", "blocks.3.hook_resid_pre")).layer == 2


class Stub:
    """The part of a SAELens object that is used, with other contents."""

    def __init__(self, cfg, state):
        self.cfg = self
        self.to_dict = lambda: cfg
        self.state_dict = lambda: state


def test_something_else_than_a_saelens_object_is_refused():
    with pytest.raises(UnlearnError, match=r"^sae: .*sae_lens\.SAE.*Linear"):
        SparseAutoencoder.from_saelens(torch.nn.Linear(2, 2))
    with pytest.raises(SAEFormatError, match="holds W_skip"):
        SparseAutoencoder.from_saelens(Stub({"architecture": "standard"}, {"W_skip": torch.zeros(2)}))
    with pytest.raises(SAEFormatError, match=r"Stub .*lacks W_enc"):
        SparseAutoencoder.from_saelens(Stub({"architecture": "standard"}, {"W_dec": torch.zeros(2, 2)}))
    with pytest.raises(UnlearnError, match="dtype"):
        SparseAutoencoder.from_saelens(Stub({}, {}), dtype=torch.int64)
