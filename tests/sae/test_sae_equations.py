"""The autoencoder computes the published equations, in its own dtype, for any leading shape."""

import pytest
import torch
from sae_folders import D_IN, D_SAE, residual, tensors, tiny

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SparseAutoencoder


THRESHOLDED = ["jumprelu", "gated", "batchtopk"]
ALL = ["standard", *THRESHOLDED, "topk"]


def transcribed(sae, h):
    """The equations, feature by feature and token by token."""
    rows = []
    for x in h.reshape(-1, D_IN):
        pre = [float(sum(x[i] * sae.W_enc[i, j] for i in range(D_IN)) + sae.b_enc[j]) for j in range(D_SAE)]
        if sae.architecture == "topk":
            kept = sorted(range(D_SAE), key=lambda j: -pre[j])[: sae.k]
            rows.append([max(p, 0.0) if j in kept else 0.0 for j, p in enumerate(pre)])
        else:
            rows.append([p if p > float(sae.threshold[j]) else 0.0 for j, p in enumerate(pre)])
    return torch.tensor(rows, dtype=h.dtype).reshape(*h.shape[:-1], D_SAE)


@pytest.mark.parametrize("architecture", ALL)
def test_each_architecture_computes_its_equation(architecture):
    sae, h = tiny(architecture, torch.float64), residual(5, dtype=torch.float64)
    a = sae.encode(h)
    torch.testing.assert_close(a, transcribed(sae, h), rtol=0, atol=1e-12)
    assert 0 < (a > 0).sum() < a.numel()
    reconstruction = torch.stack([sum(a[t, j] * sae.W_dec[j] for j in range(D_SAE)) + sae.b_dec for t in range(5)])
    torch.testing.assert_close(sae.decode(a), reconstruction, rtol=0, atol=1e-12)
    torch.testing.assert_close(sae(h), reconstruction, rtol=0, atol=1e-12)
    torch.testing.assert_close(sae.pre_activations(h), h @ sae.W_enc + sae.b_enc, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ALL)
def test_any_leading_shape_gives_the_rows_one_by_one(architecture):
    sae, h = tiny(architecture, torch.float64), residual(2, 3, dtype=torch.float64)
    a = sae.encode(h)
    assert a.shape == (2, 3, D_SAE)
    torch.testing.assert_close(a[1, 2], sae.encode(h[1, 2]), rtol=0, atol=1e-12)
    assert sae.encode(h[:0]).shape == (0, 3, D_SAE)
    assert sae.decode(a).shape == h.shape


def test_an_inactive_feature_is_plus_zero_and_an_activation_at_its_threshold_is_off():
    one = torch.ones(1, 1)
    sae = SparseAutoencoder(one, torch.zeros(1), one, torch.zeros(1), threshold=torch.tensor([2.0]))
    a = sae.encode(torch.tensor([[-3.0], [2.0], [2.5]]))
    assert a.tolist() == [[0.0], [0.0], [2.5]]
    assert not torch.signbit(a).any()


def test_a_negative_threshold_acts_as_zero():
    sae = tiny("jumprelu", threshold=torch.full((D_SAE,), -1.0))
    assert torch.equal(sae.threshold, torch.zeros(D_SAE))
    assert torch.equal(sae.encode(residual(4)), torch.relu(sae.pre_activations(residual(4))))


def test_topk_never_keeps_a_negative_pre_activation():
    sae = tiny("topk", k=D_SAE)
    assert torch.equal(sae.encode(residual(4)), torch.relu(sae.pre_activations(residual(4))))


def test_a_nan_in_the_input_stays_visible():
    assert tiny().encode(torch.full((1, D_IN), torch.nan)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_are_cast_to_the_dtype_of_the_sae(dtype):
    sae, h = tiny(), residual(4, dtype=dtype)
    assert sae.encode(h).dtype == torch.float32
    assert torch.equal(sae.encode(h), sae.encode(h.float()))
    assert torch.equal(sae.decode(sae.encode(h).to(dtype)), sae.decode(sae.encode(h).to(dtype).float()))


def test_autocast_does_not_lower_the_precision():
    sae, h = tiny(), residual(4)
    expected, part = sae(h), sae.slice([2, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sae(h), expected)
        assert torch.equal(part.encode(h), part.encode(h).float())


@pytest.mark.parametrize("architecture", ALL)
def test_gradients_reach_the_input_and_never_the_weights(architecture):
    sae, h = tiny(architecture), residual(4).requires_grad_()
    sae(h).square().sum().backward()
    assert h.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in sae.parameters())


def test_attributes_say_what_it_is():
    sae = tiny("topk", layer=9, source={"id": "me/sae"})
    assert (sae.d_in, sae.d_sae, sae.architecture, sae.k, sae.layer) == (D_IN, D_SAE, "topk", 3, 9)
    assert sae.source == {"id": "me/sae"}
    assert not sae.training
    assert set(sae.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert tiny().source == {}
    assert "d_sae=10" in repr(sae)


@pytest.mark.parametrize("h", [torch.zeros(2, D_IN + 1), torch.tensor(1.0)])
def test_a_wrong_width_is_named(h):
    with pytest.raises(UnlearnError, match=rf"d_in={D_IN}"):
        tiny().encode(h)
    with pytest.raises(UnlearnError, match=rf"d_sae={D_SAE}"):
        tiny().decode(h)


@pytest.mark.parametrize("h", [torch.zeros(2, D_IN, dtype=torch.long), [0.0] * D_IN])
def test_what_is_no_activation_is_refused(h):
    with pytest.raises(UnlearnError, match="h: expected"):
        tiny().encode(h)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_enc": torch.zeros(D_IN)}, r"W_enc: .* got shape \[6\]"),
        ({"W_enc": torch.zeros(0, D_SAE)}, r"^W_enc: .*\[0, 10\]"),
        ({"b_enc": torch.zeros(D_SAE + 1)}, r"^b_enc: .*\[10\], got \[11\]"),
        ({"W_dec": torch.zeros(D_IN, D_SAE)}, r"^W_dec: .*\[10, 6\], got \[6, 10\]"),
        ({"b_dec": torch.zeros(D_SAE)}, r"^b_dec: .*\[6\], got \[10\]"),
        ({"threshold": torch.zeros(1)}, r"^threshold: .*got \[1\]"),
        (
            {"b_enc": torch.zeros(D_SAE, dtype=torch.float16)},
            "b_enc: expected torch.float32, .* got torch.float16",
        ),
        ({"b_dec": torch.zeros(D_IN, dtype=torch.long)}, "floating dtype"),
        ({"W_dec": torch.full((D_SAE, D_IN), torch.nan)}, "60 NaN"),
        ({"threshold": torch.full((D_SAE,), torch.inf)}, "10 NaN"),
        ({"threshold": None}, "threshold: "),
        ({"architecture": "standard"}, "threshold: expected None"),
        ({"architecture": "relu"}, "expected one of 'standard'"),
        ({"architecture": "topk", "threshold": None}, "k=None"),
        ({"architecture": "topk", "threshold": None, "k": D_SAE + 1}, "k=11"),
        ({"architecture": "topk", "threshold": None, "k": True}, "k=True"),
        ({"k": 3}, "k=3"),
        ({"layer": -1}, "layer=-1"),
        ({"layer": 1.5}, "layer=1.5"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    with pytest.raises(UnlearnError, match=message):
        SparseAutoencoder(**(tensors() | change))


def test_weights_that_are_no_tensors_are_refused():
    with pytest.raises(UnlearnError, match="b_enc: expected"):
        SparseAutoencoder(**(tensors() | {"b_enc": [0.0] * D_SAE}))
    with pytest.raises(UnlearnError, match="W_enc: expected"):
        SparseAutoencoder(**(tensors() | {"W_enc": None}))
