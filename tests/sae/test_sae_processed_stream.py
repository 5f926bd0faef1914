"""SAEs of a model whose weights TransformerLens processed: read exactly, or refused by the setting's name."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from oracles import oracle
from sae_folders import residual, tensors, tiny, write_saelens

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder
from sae_unlearn.sae.formats.saelens_model import HARMLESS, UNSAID


H = residual(64, dtype=torch.float64) * 3 + 2
METADATA = {"hook_name": "blocks.9.hook_resid_post", "model_name": "gpt2-small"}
CENTERED = METADATA | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


def load(folder, dtype=torch.float64):
    return SparseAutoencoder.from_pretrained(folder, dtype=dtype)


def write(folder, metadata=CENTERED, **config):
    return write_saelens(folder, tensors(), metadata=metadata, **config)


@pytest.mark.parametrize("subtract", [True, False])
def test_a_centered_stream_is_read_without_its_mean_which_is_put_back(tmp_path, subtract):
    w = {name: tensor.double() for name, tensor in tensors().items()}
    sae = load(write(tmp_path / "sae", apply_b_dec_to_input=subtract))
    mean = H.mean(dim=-1, keepdim=True)
    pre = (H - mean - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    a = torch.relu(pre) * (pre > w["threshold"])
    assert 0 < (a > 0).sum() < a.numel()
    torch.testing.assert_close(sae.encode(H), a, rtol=0, atol=1e-9)
    torch.testing.assert_close(sae(H), a @ w["W_dec"] + w["b_dec"] + mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(sae.slice([4, 1]).encode(H), a[:, [4, 1]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_saved_as_it_is(tmp_path, dtype):
    sae = load(write(tmp_path / "sae"), dtype)
    sae.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype)
    assert again.input_norm == "center"
    assert torch.equal(again.W_enc, sae.W_enc)
    assert torch.equal(again(H), sae(H))


def test_layer_norm_takes_the_mean_out_already(tmp_path):
    assert load(write(tmp_path, normalize_activations="layer_norm")).input_norm == "layer"


def test_columns_that_are_not_centered_are_refused():
    with pytest.raises(UnlearnError, match=r"^input_norm='center': .*W_enc.*got 10"):
        tiny(input_norm="center")


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_settings_that_leave_the_stream_as_it_is_change_nothing(tmp_path, name):
    kwargs = {name: True, "center_writing_weights": False}
    sae = load(write(tmp_path, METADATA | {"model_from_pretrained_kwargs": kwargs}))
    assert sae.input_norm is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model_from_pretrained_kwargs": {"rotate_residual": True}}, "sets 'rotate_residual'=True"),
        ({"model_from_pretrained_kwargs": [1]}, r"model_from_pretrained_kwargs in .* is \[1\]"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": "yes"}}, "center_writing_weights in .* is 'yes'"),
        (CENTERED | {"model_name": "gemma-2b"}, "for model_name='gemma-2b'"),
        ({key: value for key, value in CENTERED.items() if key != "model_name"}, "for model_name=None"),
    ],
)
def test_a_setting_whose_effect_is_not_known_is_refused(tmp_path, metadata, message):
    with pytest.raises(SAEFormatError, match=message):
        load(write(tmp_path, metadata))


@pytest.mark.parametrize("place", ["{name}", "models--{owner}--{name}/snapshots/0"])
@pytest.mark.parametrize("repository", sorted(UNSAID))
def test_settings_that_only_saelens_list_says_are_followed(tmp_path, repository, place):
    owner, name = repository.split("/")
    folder = tmp_path / place.format(owner=owner, name=name) / "blocks.9.hook_resid_pre"
    write(folder, METADATA | {"hook_name": "blocks.9.hook_resid_pre"})
    if "normalize_activations" in UNSAID[repository]:
        with pytest.raises(SAEFormatError, match="constant_norm_rescale"):
            load(folder)
    else:
        assert load(folder).input_norm == "center"


def test_the_list_of_such_settings_is_saelens_own():
    """Of its releases that read the output of a decoder layer, and are in SAELens' own format."""
    oracle("sae_lens")
    import sae_lens

    listed = yaml.load((Path(sae_lens.__file__).parent / "pretrained_saes.yaml").read_text(), yaml.CSafeLoader)
    found = {}
    for release in listed.values():
        said = release.get("config_overrides") or {}
        said = {key: said[key] for key in ("model_from_pretrained_kwargs", "normalize_activations") if key in said}
        if said and all("hook_resid_p" in str(sae.get("id")) for sae in release["saes"]):
            found[release["repo_id"]] = said
    assert found == UNSAID


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "standard", "k": 3}, "k=3 in .*architecture='standard'"),
        ({"architecture": ..., "activation_fn_str": "relu", "activation_fn_kwargs": {"k": 3}}, "k=3 in .*'relu'"),
        ({"architecture": "gated", "k": 3}, "k=3 in .*'gated'"),
        ({"architecture": "gated", "activation_fn": "topk"}, "activation_fn='topk' in .*architecture='gated'"),
        ({"architecture": "jumprelu", "activation_fn": "topk"}, "activation_fn='topk' in .*architecture='jumprelu'"),
        ({"architecture": "topk", "k": 3, "activation_fn_kwargs": {"k": 4}}, "k in .* 3 and 4"),
        ({"hook_name": "blocks.8.hook_resid_post"}, "hook_name in .* two values"),
        ({"hook_point": "blocks.8.hook_resid_post"}, "hook_name in .* two values"),
        ({"hf_hook_name": "model.layers.8.output"}, "but hf_hook_name='model.layers.8.output'"),
        ({"hook_layer": 8}, "but hook_layer=8"),
        ({"hook_point_layer": 8}, "but hook_point_layer=8"),
        ({"activation_fn": "relu", "activation_fn_str": "topk"}, "activation_fn in .* two values"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(tmp_path, change, message):
    with pytest.raises(SAEFormatError, match=message):
        load(write(tmp_path, METADATA, **change))


def test_a_scale_that_the_configuration_does_not_apply_is_refused(tmp_path):
    write(tmp_path, METADATA)
    for scale, fine in ((None, True), (1.0, True), (0.5, False)):
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
        if fine:
            load(tmp_path)
        else:
            with pytest.raises(SAEFormatError, match=r"scaling_factor=0\.5 .*normalize_activations='none'"):
                load(tmp_path)
