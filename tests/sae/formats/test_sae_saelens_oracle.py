"""SAELens itself as the oracle: what it saves we compute, and what we save it computes."""

import json

import pytest
import torch
from oracles import LateOracle
from sae_folders import D_IN, D_SAE, residual, tiny

from sae_unlearn.sae import SparseAutoencoder


sae_lens = LateOracle("sae_lens")

H = residual(256, dtype=torch.float64)
METADATA = {"hook_name": "blocks.9.hook_resid_post"}


def randomised(sae):
    """Every weight of a SAELens SAE random, so that none of them is without effect."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * (0.3 if name == "r_mag" else 1.0))
        if hasattr(sae, "threshold"):
            sae.threshold.copy_(sae.threshold * 0.5)  # some below zero
    return sae


def inference(kind, dtype="float64", **options):
    """A random inference SAE of SAELens."""
    config, cls = {
        "standard": (sae_lens.StandardSAEConfig, sae_lens.StandardSAE),
        "jumprelu": (sae_lens.JumpReLUSAEConfig, sae_lens.JumpReLUSAE),
        "gated": (sae_lens.GatedSAEConfig, sae_lens.GatedSAE),
        "topk": (sae_lens.TopKSAEConfig, sae_lens.TopKSAE),
    }[kind]
    metadata = sae_lens.saes.sae.SAEMetadata(**METADATA)
    return randomised(cls(config(d_in=D_IN, d_sae=D_SAE, dtype=dtype, metadata=metadata, **options)))


def trained_batchtopk(rescale):
    """A BatchTopK SAE as it is in the middle of its training."""
    config = sae_lens.BatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=2.5, dtype="float64", rescale_acts_by_decoder_norm=rescale
    )
    sae = randomised(sae_lens.BatchTopKTrainingSAE(config))
    sae.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
    return sae


def agree(ours, theirs, h=H, atol=1e-9):
    a = theirs.encode(h)
    assert 0 < (a > 0).sum() < a.numel()
    torch.testing.assert_close(ours.encode(h), a, rtol=0, atol=atol)
    torch.testing.assert_close(ours(h), theirs.decode(a), rtol=0, atol=atol)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("standard", {}),
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"k": 3}),
        ("topk", {"k": 3, "rescale_acts_by_decoder_norm": True}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("gated", {"normalize_activations": "layer_norm"}),
        ("topk", {"k": 3, "normalize_activations": "layer_norm"}),
    ],
)
def test_what_saelens_saves_computes_the_same_here(tmp_path, kind, options, subtract):
    theirs = inference(kind, apply_b_dec_to_input=subtract, **options)
    theirs.save_model(tmp_path)
    ours = SparseAutoencoder.from_pretrained(tmp_path, dtype=torch.float64)
    assert (ours.architecture, ours.layer, ours.k) == (kind, 9, options.get("k"))
    agree(ours, theirs)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "topk"])
def test_in_float32_the_difference_is_rounding(tmp_path, kind):
    theirs = inference(kind, dtype="float32", **({"k": 3} if kind == "topk" else {}))
    theirs.save_model(tmp_path)
    ours = SparseAutoencoder.from_pretrained(tmp_path)
    agree(ours, theirs, H.float(), atol=2e-5)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_trained_batchtopk_sae_computes_the_same_here(tmp_path, rescale):
    trained = trained_batchtopk(rescale)
    trained.save_inference_model(tmp_path / "inference")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    ours = SparseAutoencoder.from_pretrained(tmp_path / "inference", dtype=torch.float64)
    assert ours.architecture == "batchtopk"
    agree(ours, theirs)
    trained.save_model(tmp_path / "checkpoint")
    agree(SparseAutoencoder.from_pretrained(tmp_path / "checkpoint", dtype=torch.float64), theirs)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_checkpoint_with_its_input_scale_computes_what_saelens_folds(tmp_path, rescale):
    trained = trained_batchtopk(rescale)
    trained.cfg.normalize_activations = "expected_average_only_in"
    trained.save_model(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.3, "has_whitening": False}))
    ours = SparseAutoencoder.from_pretrained(tmp_path, dtype=torch.float64)
    trained.fold_activation_norm_scaling_factor(0.3)
    trained.save_inference_model(tmp_path / "folded")
    agree(ours, sae_lens.SAE.load_from_disk(tmp_path / "folded"), 3 * H)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk", "topk"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", [None, "layer"])
def test_what_we_save_computes_the_same_in_saelens(tmp_path, architecture, dtype, norm):
    ours = tiny(architecture, dtype, layer=9, input_norm=norm)
    ours.save_pretrained(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.metadata.hook_name == "blocks.9.hook_resid_post"
    assert theirs.cfg.dtype == str(dtype).removeprefix("torch.")
    agree(ours, theirs, H.to(dtype), atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_a_centered_stream_is_read_by_both_as_one(tmp_path):
    """SAELens is given the centered stream, as its model makes it, and we the model's own."""
    theirs = inference("jumprelu")
    theirs.cfg.metadata.model_name = "gpt2-small"
    theirs.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    theirs.save_model(tmp_path / "theirs")
    mean = H.mean(dim=-1, keepdim=True)
    for ours in (
        SparseAutoencoder.from_saelens(theirs, dtype=torch.float64),
        SparseAutoencoder.from_pretrained(tmp_path / "theirs", dtype=torch.float64),
    ):
        torch.testing.assert_close(ours.encode(H), theirs.encode(H - mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(ours(H), theirs(H - mean) + mean, rtol=0, atol=1e-9)
    ours.save_pretrained(tmp_path / "ours")
    again = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    torch.testing.assert_close(again.encode(H - mean), ours.encode(H), rtol=0, atol=1e-9)
