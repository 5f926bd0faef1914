"""Folding changes how a published SAE is written and not what it computes (float64, 1e-9)."""

import pytest
import torch
from sae_folders import D_SAE, residual, tensors

from sae_unlearn.sae.equations import jumprelu
from sae_unlearn.sae.formats import folding as fold


H = residual(64, dtype=torch.float64)


def close(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


def weights():
    return tensors(dtype=torch.float64).values()


@pytest.mark.parametrize("block", [3, 4096])
def test_subtracting_b_dec_from_the_input_is_a_shift_of_b_enc(monkeypatch, block):
    monkeypatch.setattr(fold, "BLOCK", block)
    W_enc, b_enc, _, b_dec, _ = weights()
    close(H @ W_enc + fold.fold_b_dec_into_b_enc(W_enc, b_enc, b_dec), (H - b_dec) @ W_enc + b_enc)


@pytest.mark.parametrize("scale", [0.037, 12.5])
def test_a_constant_input_scale_moves_into_the_matrices(scale):
    W_enc, b_enc, W_dec, b_dec, threshold = weights()
    a = jumprelu((H * scale - b_dec) @ W_enc + b_enc, threshold)
    shifted = fold.fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    W_scaled, D_scaled, b_scaled = fold.fold_input_scale(W_enc, W_dec, b_dec, scale)
    folded = jumprelu(H @ W_scaled + shifted, threshold)
    close(folded, a)
    close(folded @ D_scaled + b_scaled, (a @ W_dec + b_dec) / scale)


def test_a_gated_sae_is_a_jumprelu():
    W_enc, b_gate, _, _, b_mag = weights()
    b_mag = b_mag - 0.2
    r_mag = torch.randn(D_SAE, dtype=torch.float64)
    pi = H @ W_enc
    gate = pi + b_gate > 0
    magnitude = torch.relu(pi * r_mag.exp() + b_mag)
    W_folded, b_folded, threshold = fold.fold_gate(W_enc, b_gate, b_mag, r_mag)
    folded = jumprelu(H @ W_folded + b_folded, threshold)
    close(folded, gate * magnitude)
    shut_by_gate, shut_by_relu = (~gate & (magnitude > 0)).any(), (gate & (magnitude == 0)).any()
    assert shut_by_gate
    assert shut_by_relu
    assert (threshold >= 0).all()
    assert (threshold == 0).any()


def test_rescaling_by_the_decoder_norm_moves_into_the_matrices():
    W_enc, b_enc, W_dec, b_dec, threshold = weights()
    norm = W_dec.norm(dim=1)
    a = jumprelu((H @ W_enc + b_enc) * norm, threshold)
    W_folded, b_folded, D_folded = fold.fold_decoder_norm(W_enc, b_enc, W_dec)
    folded = jumprelu(H @ W_folded + b_folded, threshold)
    close(folded, a)
    close(folded @ D_folded + b_dec, (a / norm) @ W_dec + b_dec)


def test_a_dead_decoder_row_does_not_divide_by_zero():
    W_enc, b_enc, W_dec, *_ = weights()
    W_dec[3] = 0
    assert all(t.isfinite().all() for t in fold.fold_decoder_norm(W_enc, b_enc, W_dec))


def test_folding_leaves_its_arguments_alone_and_works_in_float64():
    given = tensors()
    before = {name: tensor.clone() for name, tensor in given.items()}
    W_enc, b_enc, W_dec, b_dec, threshold = given.values()
    results = [
        fold.fold_b_dec_into_b_enc(W_enc, b_enc, b_dec),
        *fold.fold_input_scale(W_enc, W_dec, b_dec, 2.0),
        *fold.fold_gate(W_enc, b_enc, threshold, threshold),
        *fold.fold_decoder_norm(W_enc, b_enc, W_dec),
    ]
    assert all(result.dtype == torch.float64 for result in results)
    assert all(torch.equal(given[name], before[name]) for name in given)
