"""Published layouts are read; what cannot be represented exactly is refused by name."""

import json

import pytest
import torch
from sae_folders import (
    D_IN,
    D_SAE,
    residual,
    tensors,
    write_gemma_scope,
    write_gemma_scope_2,
    write_saelens,
)

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder, register_reader
from sae_unlearn.sae.formats import READERS, Reader, needs


H = residual(64, dtype=torch.float64)


def load(folder, **kwargs):
    return SparseAutoencoder.from_pretrained(folder, **({"dtype": torch.float64} | kwargs))


def without(*names):
    return {name: tensor for name, tensor in tensors().items() if name not in names}


def double(weights):
    return {name: tensor.double() for name, tensor in weights.items()}


def test_gemma_scope_is_read_as_it_is(tmp_path):
    write_gemma_scope(tmp_path / "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_142")
    sae = load(tmp_path / "gemma-scope-2b-pt-res", subfolder="layer_3/width_16k/average_l0_142", dtype=torch.float32)
    assert all(torch.equal(getattr(sae, name), tensor) for name, tensor in tensors().items())
    assert (sae.architecture, sae.layer, sae.source["format"]) == ("jumprelu", 3, "gemma_scope")


@pytest.mark.parametrize(
    "folder",
    [
        "gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_142",
        "gemma-scope-9b-pt-att-canonical/layer_3",
        "models--google--gemma-scope-2b-pt-transcoders/snapshots/x/layer_3/width_16k/average_l0_142",
        "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_111",
    ],
)
def test_gemma_scope_saes_of_other_places_are_refused(tmp_path, folder):
    with pytest.raises(SAEFormatError, match=r"att|mlp|transcoders|embedding"):
        load(write_gemma_scope(tmp_path / folder))


def test_a_gemma_scope_folder_without_its_path_has_no_layer(tmp_path):
    assert load(write_gemma_scope(tmp_path)).layer is None


HOOK = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.9.output", "width": D_SAE, "l0": 20}


@pytest.mark.parametrize(
    ("folder", "config", "layer"),
    [
        ("resid_post/layer_9_width_16k_l0_small", HOOK, 9),
        ("resid_post_all/layer_9_width_16k_l0_big", None, 9),
        ("somewhere", HOOK | {"hf_hook_point_out": "model.layers.9.output"}, 9),
        ("layer_9_width_16k_l0_small", None, None),
    ],
)
def test_gemma_scope_2_takes_the_layer_from_its_configuration_or_path(tmp_path, folder, config, layer):
    sae = load(write_gemma_scope_2(tmp_path / folder, config=config), dtype=torch.float32)
    assert all(torch.equal(getattr(sae, name), tensor) for name, tensor in tensors().items())
    assert (sae.architecture, sae.layer, sae.source["format"]) == ("jumprelu", layer, "gemma_scope_2")


@pytest.mark.parametrize(
    ("folder", "config", "message"),
    [
        ("attn_out/layer_9_width_16k_l0_small", None, "attn_out"),
        ("mlp_out_all/layer_9_width_16k_l0_small", None, "mlp_out_all"),
        ("transcoder/layer_9_width_16k_l0_small_affine", None, "transcoder"),
        ("clt/width_262k_l0_big", None, "clt"),
        ("x", HOOK | {"hf_hook_point_in": "model.layers.9.self_attn.o_proj.input"}, "o_proj"),
        ("x", HOOK | {"hf_hook_point_out": "model.layers.9.post_feedforward_layernorm.output"}, "transcoder"),
        ("x", HOOK | {"affine_connection": True}, "affine"),
        ("x", HOOK | {"architecture": "topk"}, "topk"),
        ("x", HOOK | {"width": 11}, "has d_sae=10: expected 11"),
        ("resid_post/layer_5_width_16k_l0_small", HOOK, "names layer 9 but the folder"),
    ],
)
def test_gemma_scope_2_models_of_other_places_are_refused(tmp_path, folder, config, message):
    with pytest.raises(SAEFormatError, match=message):
        load(write_gemma_scope_2(tmp_path / folder, config=config))


def test_a_transcoder_by_its_tensors_is_refused(tmp_path):
    weights = tensors() | {"affine_skip_connection": torch.zeros(D_IN, D_IN)}
    with pytest.raises(SAEFormatError, match="affine_skip_connection"):
        load(write_gemma_scope_2(tmp_path, weights))


def test_a_saelens_folder_subtracts_b_dec_unless_told_otherwise(tmp_path):
    w = double(tensors())
    for number, (change, h) in enumerate([({}, H - w["b_dec"]), ({"apply_b_dec_to_input": False}, H)]):
        sae = load(write_saelens(tmp_path / str(number), tensors(), **change))
        torch.testing.assert_close(sae.pre_activations(H), h @ w["W_enc"] + w["b_enc"], rtol=0, atol=1e-9)
        assert torch.equal(sae.threshold, w["threshold"])


@pytest.mark.parametrize("subtract", [True, False])
def test_a_saelens_folder_with_layer_norm_reads_inputs_without_their_mean_and_deviation(tmp_path, subtract):
    w, h = double(tensors()), 3 * H + 1
    change = {"normalize_activations": "layer_norm", "apply_b_dec_to_input": subtract}
    sae = load(write_saelens(tmp_path / "sae", tensors(), **change))
    mean, std = h.mean(dim=-1, keepdim=True), h.std(dim=-1, keepdim=True)
    pre = ((h - mean) / (std + 1e-5) - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    a = pre * (pre > w["threshold"])
    torch.testing.assert_close(sae.encode(h), a, rtol=0, atol=1e-9)
    torch.testing.assert_close(sae(h), (a @ w["W_dec"] + w["b_dec"]) * std + mean, rtol=0, atol=1e-9)
    sae.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.input_norm == "layer"
    assert torch.equal(again(h), sae(h))


def test_folding_rounds_once(tmp_path):
    folder = write_saelens(tmp_path, tensors())
    exact = load(folder)
    assert torch.equal(load(folder, dtype=torch.float32).b_enc, exact.b_enc.float())


OLD = {
    "metadata": ...,
    "architecture": ...,
    "apply_b_dec_to_input": ...,
    "reshape_activations": ...,
    "hook_point": "blocks.10.hook_resid_pre",
    "hook_point_layer": 10,
    "activation_fn_str": "relu",
    "normalize_activations": False,
}


def test_the_spellings_of_older_saelens_are_read(tmp_path):
    weights = without("threshold") | {"scaling_factor": torch.ones(D_SAE)}
    sae = load(write_saelens(tmp_path, weights, **OLD))
    w = double(tensors())
    assert (sae.architecture, sae.layer) == ("standard", 9)
    torch.testing.assert_close(sae.encode(H), torch.relu((H - w["b_dec"]) @ w["W_enc"] + w["b_enc"]), rtol=0, atol=1e-9)


def test_the_id_of_the_saes_page_is_kept_and_saved(tmp_path):
    page = "gemma-2-2b/3-gemmascope-res-16k"
    new = {"metadata": {"hook_name": "blocks.9.hook_resid_post", "neuronpedia_id": page}}
    sae = load(write_saelens(tmp_path / "new", tensors(), **new))
    assert sae.source["neuronpedia_id"] == page
    old = load(write_saelens(tmp_path / "old", without("threshold"), **OLD, neuronpedia_id=page))
    assert old.source["neuronpedia_id"] == page
    sae.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").source["neuronpedia_id"] == page
    for number, bad in enumerate((None, 3, ["a/b"], "", "no-slash", "a/b/c", "a/b?c", "<a>/b", "ä/b")):
        source = load(write_saelens(tmp_path / str(number), tensors(), neuronpedia_id=bad)).source
        assert "neuronpedia_id" not in source


def test_the_older_topk_is_read(tmp_path):
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": None}
    sae = load(write_saelens(tmp_path, without("threshold"), **(OLD | topk)))
    assert (sae.architecture, sae.k) == ("topk", 3)


def test_an_older_finetuned_gain_is_folded_into_the_decoder(tmp_path):
    gain = torch.rand(D_SAE)
    weights = without("threshold") | {"scaling_factor": gain}
    sae = load(write_saelens(tmp_path / "on", weights, **OLD, finetuning_scaling_factor=True))
    torch.testing.assert_close(sae.W_dec, tensors()["W_dec"].double() * gain.double()[:, None], rtol=0, atol=1e-12)
    with pytest.raises(SAEFormatError, match="finetuning_scaling_factor"):
        load(write_saelens(tmp_path / "off", weights, **OLD))


def test_a_threshold_kept_as_its_logarithm_is_read(tmp_path):
    weights = without("threshold") | {"log_threshold": tensors()["threshold"].log()}
    sae = load(write_saelens(tmp_path, weights))
    torch.testing.assert_close(sae.threshold, tensors()["threshold"].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.0.hook_resid_post", 0),
        ("blocks.1.hook_resid_pre", 0),
        ("model.layers.12.output", 12),
        ("model.language_model.layers.12", 12),
        ("transformer.h.4", 4),
        (None, None),
    ],
)
def test_the_hook_name_gives_the_layer(tmp_path, name, layer):
    assert load(write_saelens(tmp_path, tensors(), metadata={"hook_name": name})).layer == layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({"metadata": {"hook_name": name}}, repr(name))
            for name in ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "blocks.0.hook_resid_pre", "hook_embed"]
        ),
        ({"metadata": {"hf_hook_name": "model.layers.3.mlp.output"}}, "'model.layers.3.mlp.output'"),
        ({"metadata": {"hook_name": 3}}, "hook name is 3"),
        ({"metadata": {"hook_head_index": 2}}, "hook_head_index=2"),
        ({"metadata": [1]}, "metadata"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"normalize_activations": True}, "fold_activation_norm_scaling_factor"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"architecture": "transcoder"}, "transcoder"),
        ({"architecture": ["jumprelu"]}, "expected one of standard"),
        ({"architecture": "standard"}, "threshold.*'standard'"),
        ({"architecture": ..., "activation_fn": "tanh-relu"}, "tanh-relu"),
        ({"architecture": "topk", "k": 2.5}, "k=2.5"),
        ({"architecture": "topk"}, "k=None"),
        ({"d_in": 7}, "has d_in=6: expected 7"),
    ],
)
def test_a_saelens_setting_that_cannot_be_kept_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(SAEFormatError, match=message):
        load(write_saelens(tmp_path, tensors(), **change))


@pytest.mark.parametrize(
    ("scaler", "message"),
    [({"scaling_factor": None}, "scaling_factor=None"), ({"scaling_factor": 0.5, "has_whitening": True}, "whitening")],
)
def test_a_scale_that_cannot_be_folded_is_refused(tmp_path, scaler, message):
    write_saelens(tmp_path, tensors(), normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text(json.dumps(scaler))
    with pytest.raises(SAEFormatError, match=message):
        load(tmp_path)


def test_a_folder_without_an_sae_lists_what_it_holds_and_what_is_known(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SAEFormatError, match=r"holds model\.safetensors.*saelens: cfg\.json.*gemma_scope: params\.npz"):
        load(tmp_path)


def test_a_wrong_subfolder_gets_the_nearest_right_ones(tmp_path):
    for l0 in ("68", "142"):
        write_gemma_scope(tmp_path / f"layer_3/width_16k/average_l0_{l0}")
    with pytest.raises(SAEFormatError, match="subfolder='layer_3/width_16k/average_l0_142' or"):
        load(tmp_path, subfolder="layer_3/width_16k/average_l0_141")
    with pytest.raises(SAEFormatError, match="2 folders"):
        load(tmp_path)


@pytest.mark.parametrize("subfolder", ["../x", "/etc", "a/../../b"])
def test_a_subfolder_stays_inside(tmp_path, subfolder):
    with pytest.raises(UnlearnError, match="without"):
        load(tmp_path, subfolder=subfolder)


def test_a_folder_with_two_formats_is_ambiguous(tmp_path):
    write_saelens(tmp_path, tensors())
    write_gemma_scope(tmp_path)
    with pytest.raises(SAEFormatError, match="several formats"):
        load(tmp_path)


def test_a_reader_can_be_added_and_not_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_unlearn.sae.formats.base.READERS", dict(READERS))
    mine = Reader("mine", "checkpoints/final.npz", needs("checkpoints/final.npz"), lambda folder: gemma(folder))

    def gemma(folder):
        (folder.path / "params.npz").write_bytes(folder.file("checkpoints/final.npz").read_bytes())
        return READERS["gemma_scope"].read(folder)

    register_reader(mine)
    with pytest.raises(UnlearnError, match="registered already"):
        register_reader(mine)
    with pytest.raises(UnlearnError, match="Reader"):
        register_reader("mine")
    write_gemma_scope(tmp_path / "L9/checkpoints")
    (tmp_path / "L9/checkpoints/params.npz").rename(tmp_path / "L9/checkpoints/final.npz")
    sae = load(tmp_path, subfolder="L9")
    assert (sae.source["format"], sae.d_sae) == ("mine", D_SAE)
