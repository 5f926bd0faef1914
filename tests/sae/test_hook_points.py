"""Where an SAE may read: the output of a decoder layer, under any of its names; other places are refused by name."""

import pytest
import torch
from sae_folders import tensors, write_saelens
from zoo import WIDTH, base_model

from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder
from sae_unlearn.sae.compatibility import check_sae
from sae_unlearn.sae.formats.base import layer_of_hook


def test_resid_pre_of_a_layer_is_what_the_layer_before_it_gives_out():
    model, seen = base_model("llama"), []
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(WIDTH, 40, generator=generator)
    weights = W_enc, torch.zeros(40), W_enc.T.contiguous(), torch.zeros(WIDTH)
    sae = SparseAutoencoder(*weights, architecture="standard", layer=layer_of_hook("blocks.2.hook_resid_pre"))
    layer = check_sae(sae, model, None)
    model.model.layers[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        model(input_ids=ids)
    (batch,) = residual_batches(model, ids.tolist(), layer, 1)
    assert layer == 1
    assert torch.equal(sae.encode(batch.residual), sae.encode(seen[0]))


PLACES = ["hook_mlp_out", "hook_attn_out", "hook_resid_mid", "attn.hook_z", "mlp.hook_post", "hook_mlp_in"]


@pytest.mark.parametrize("place", PLACES)
def test_other_places_are_refused_by_name_with_what_to_take_instead(tmp_path, place):
    name = f"blocks.3.{place}"
    mend = rf"{name}.*is not the output of a decoder layer; .*'blocks\.L\.hook_resid_post'"
    with pytest.raises(SAEFormatError, match=mend):
        SparseAutoencoder.from_pretrained(write_saelens(tmp_path, tensors(), metadata={"hook_name": name}))


def test_resid_pre_of_the_first_layer_is_no_layers_output():
    with pytest.raises(SAEFormatError, match=r"blocks\.0\.hook_resid_pre.*with L >= 1"):
        layer_of_hook("blocks.0.hook_resid_pre")
