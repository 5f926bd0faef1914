"""A slice computes its features as the whole SAE does."""

import dataclasses

import numpy as np
import pytest
import torch
from sae_folders import D_IN, D_SAE, residual, tiny

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SAESlice


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk"])
def test_a_slice_gives_the_same_activations_and_decoder_rows(architecture):
    sae, h, ids = tiny(architecture, torch.float64), residual(2, 20, dtype=torch.float64), [7, 0, 3]
    part = sae.slice(ids)
    assert part.feature_ids == ids
    assert part.W_enc.shape == (D_IN, 3)
    torch.testing.assert_close(part.encode(h), sae.encode(h)[..., ids], rtol=0, atol=1e-12)
    assert torch.equal(part.W_dec, sae.W_dec[ids])
    assert torch.equal(part.threshold, sae.threshold[ids])


def test_a_slice_is_a_copy_without_gradients():
    sae = tiny()
    part = sae.slice([1])
    part.W_enc.zero_()
    assert sae.W_enc[:, 1].abs().sum() > 0
    assert not part.W_dec.requires_grad
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.W_enc = part.W_enc


@pytest.mark.parametrize("ids", [torch.tensor([2, 4]), np.array([2, 4]), (2, np.int64(4)), range(2, 5, 2)])
def test_ids_may_be_any_integers(ids):
    part = tiny().slice(ids)
    assert part.feature_ids == [2, 4]
    assert all(type(i) is int for i in part.feature_ids)


def test_a_topk_sae_says_why_it_cannot_be_sliced():
    with pytest.raises(UnlearnError, match=r"topk SAE .k=.*all 10"):
        tiny("topk").slice([1])


def test_a_topk_sae_is_sliced_with_thresholds_of_the_callers_and_no_other_sae_is():
    sae, h = tiny("topk"), torch.randn(6, tiny().d_in)
    theta = torch.tensor([0.2, 0.0])
    part = sae.slice([3, 1], threshold=theta)
    pre = sae.pre_activations(h)[:, [3, 1]]
    assert torch.equal(part.encode(h), torch.relu(pre) * (pre > theta))
    with pytest.raises(UnlearnError, match=r"^threshold: .*None.*'jumprelu'"):
        tiny().slice([1], threshold=theta[:1])


def test_an_sae_with_normalised_inputs_is_sliced_for_tokens_of_one_deviation():
    sae, ids, h = tiny(dtype=torch.float64, input_norm="layer"), [3, 1], residual(50, dtype=torch.float64)
    for given in ({}, {"threshold": sae.threshold[ids]}):
        with pytest.raises(UnlearnError, match=r"input_norm='layer' .*pass threshold= \[N\] and std="):
            sae.slice(ids, **given)
    with pytest.raises(UnlearnError, match=r"std=.*input_norm='layer'"):
        tiny("topk").slice([1], threshold=torch.zeros(1), std=1.0)
    h = (h - h.mean(dim=-1, keepdim=True)) / h.std(dim=-1, keepdim=True) * 2.5 + h.mean(dim=-1, keepdim=True)
    part = sae.slice(ids, threshold=sae.threshold[ids], std=2.5)
    torch.testing.assert_close(part.encode(h), sae.encode(h)[:, ids], rtol=0, atol=1e-9)
    without = sae.encode(h).clone()
    without[:, ids] = 0
    edited = sae.decode(without) * h.std(dim=-1, keepdim=True) + h.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(sae(h) - part.encode(h) @ part.W_dec, edited, rtol=0, atol=1e-9)
    with pytest.raises(UnlearnError, match="input_norm='batch'"):
        tiny(input_norm="batch")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "got none"),
        ([1, 1], r"got \[1\]"),
        ([D_SAE], r"d_sae=10, got \[10\]"),
        ([-1], r"at least 0.*got \[-1\]"),
        ([1.0], r"got 1\.0"),
        (torch.tensor([1.0]), r"got tensor\(1\.\)"),
        ([True, False], "got True"),
        (["3"], "got '3'"),
        ("3", "='3': "),
        (3, "=3: "),
    ],
)
def test_ids_that_name_no_features_are_refused(ids, message):
    with pytest.raises(UnlearnError, match=f"^feature_ids.*{message}"):
        tiny().slice(ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_ids": [1]}, "W_enc: expected 1 columns"),
        ({"b_enc": torch.zeros(3)}, "b_enc: expected shape"),
        ({"W_dec": torch.zeros(2, D_IN, dtype=torch.float64)}, "one dtype"),
        ({"threshold": torch.tensor([0.1, -0.1])}, "negative"),
        ({"W_enc": torch.full((D_IN, 2), torch.nan)}, "NaN"),
    ],
)
def test_a_slice_built_by_hand_is_checked(change, message):
    fields = {field.name: getattr(tiny().slice([1, 2]), field.name) for field in dataclasses.fields(SAESlice)}
    with pytest.raises(UnlearnError, match=message):
        SAESlice(**(fields | change))


def test_a_wrong_width_is_named():
    with pytest.raises(UnlearnError, match="d_in=6"):
        tiny().slice([1]).encode(torch.zeros(2, 5))
