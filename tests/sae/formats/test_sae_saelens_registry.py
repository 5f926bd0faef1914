"""Every architecture that SAELens knows is read exactly or refused by its name; a new one fails here."""

from dataclasses import fields

import pytest
import torch
from oracles import LateOracle
from sae_folders import D_IN, D_SAE, residual

from sae_unlearn.sae import SAEFormatError, SparseAutoencoder


sae_lens = LateOracle("sae_lens")

H = residual(128, dtype=torch.float64)
BOTH = ("standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
KNOWN = {
    "SAE_CLASS_REGISTRY": (*BOTH, *TRANSCODERS, "temporal"),
    "SAE_TRAINING_CLASS_REGISTRY": (*BOTH, "batchtopk", "matryoshka_batchtopk"),
}
REFUSED = {"abstopk", "matching_pursuit", "temporal", *TRANSCODERS}
SETTINGS = {
    "k": 3,
    "matryoshka_widths": [4, D_SAE],
    "d_out": D_IN,
    "n_heads": 1,
    "kval_topk": 4,
    "bottleneck_factor": 2,
}


def random_sae(cls, config):
    """An SAE of that class whose weights are all random."""
    there = {field.name for field in fields(config)}
    settings = {name: value for name, value in SETTINGS.items() if name in there}
    if config.architecture() in TRANSCODERS:
        settings["apply_b_dec_to_input"] = False
    sae = cls(config(d_in=D_IN, d_sae=D_SAE, dtype="float64", **settings))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.5)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
    return sae


def save(sae, folder):
    """As it is saved for use."""
    getattr(sae, "save_inference_model", sae.save_model)(folder)


def test_every_architecture_of_both_registries_is_known():
    assert {registry: set(getattr(sae_lens.registry, registry)) for registry in KNOWN} == {
        registry: set(names) for registry, names in KNOWN.items()
    }


@pytest.mark.parametrize(("registry", "name"), [(registry, name) for registry in KNOWN for name in KNOWN[registry]])
def test_what_is_not_refused_computes_the_same_from_memory_and_from_disk(tmp_path, registry, name):
    cls, config = getattr(sae_lens.registry, registry)[name]
    assert config.architecture() == name
    theirs = random_sae(cls, config)
    save(theirs, tmp_path)
    if name in REFUSED:
        for read, source in (("from_saelens", theirs), ("from_pretrained", tmp_path)):
            with pytest.raises(SAEFormatError, match=rf"\b{name}\b"):
                getattr(SparseAutoencoder, read)(source)
        return
    saved = sae_lens.SAE.load_from_disk(tmp_path)
    features = saved.encode(H)
    assert 0 < (features > 0).sum() < features.numel()
    for ours in (
        SparseAutoencoder.from_saelens(theirs, dtype=torch.float64),
        SparseAutoencoder.from_pretrained(tmp_path, dtype=torch.float64),
    ):
        torch.testing.assert_close(ours.encode(H), features, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours(H), saved.decode(features), rtol=0, atol=1e-9)
