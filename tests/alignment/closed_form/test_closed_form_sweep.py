"""The equations of a sweep: least squares, the way back through a norm, the cut to a rank, the overshoot."""

import pytest
import torch
from torch import nn
from zoo import base_model, token_ids

from sae_unlearn.alignment.closed_form.covariance import RIDGE, Moments
from sae_unlearn.alignment.closed_form.projections import Change, Projection, find_projections, tapped
from sae_unlearn.alignment.closed_form.replay import Replay
from sae_unlearn.alignment.closed_form.solve import solve_alignment
from sae_unlearn.alignment.closed_form.sweep import TargetRows, cut_to_rank, least_squares, moves_of_outputs
from sae_unlearn.backbone.residual_stream import residual_batches


D_IN, D_OUT, N = 24, 10, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def covariance(size=D_IN, seed=3):
    x = drawn(4 * size, size, seed=seed)
    return x.T @ x / len(x)


def test_the_change_is_the_minimum_that_a_direct_solve_finds():
    k, v, moments = drawn(N, D_IN), drawn(N, D_OUT, seed=1), Moments({0: covariance()})
    found = least_squares(k, v, moments.factor(0), lam=0.7)
    c = moments.matrices[0].double()
    c = c + RIDGE * c.diagonal().mean() * torch.eye(D_IN, dtype=torch.float64)
    a = k.double().T @ k.double() / N + 0.7 * c
    direct = (v.double().T @ k.double() / N) @ torch.linalg.inv(a)
    assert torch.allclose((found.moves.T @ found.reads).double(), direct, atol=1e-5)
    w = direct.clone().requires_grad_()  # and no step from there lowers the loss
    loss = (k.double() @ w.T - v.double()).square().sum() / N + 0.7 * torch.trace(w @ c @ w.T)
    (gradient,) = torch.autograd.grad(loss, w)
    assert float(gradient.abs().max()) < 1e-10


def test_the_order_of_the_targets_does_not_matter():
    k, v, factor = drawn(N, D_IN), drawn(N, D_OUT, seed=1), Moments({0: covariance()}).factor(0)
    a, b = least_squares(k, v, factor, 0.5), least_squares(k.flip(0), v.flip(0), factor, 0.5)
    assert torch.allclose(a.moves.T @ a.reads, b.moves.T @ b.reads, atol=1e-6)


def site(gain=None, scale=1.0):
    return Projection(0, "mlp.down_proj", nn.Linear(D_IN, D_OUT), gain, 1e-6, scale)


def test_without_a_norm_the_residual_stream_moves_by_what_was_asked():
    m, r, here = drawn(N, D_OUT), drawn(N, D_OUT, seed=1), site(scale=0.4)
    assert torch.allclose(here.written(m + moves_of_outputs(m, r, here)) - here.written(m), r, atol=1e-6)


def test_through_a_norm_a_goal_that_the_norm_can_give_is_reached_exactly():
    here, m = site(gain=1 + drawn(D_OUT, seed=5).abs()), drawn(N, D_OUT)
    goal = here.written(drawn(N, D_OUT, seed=2) * 7)
    v = moves_of_outputs(m, goal - here.written(m), here)
    assert torch.allclose(here.written(m + v), goal, atol=1e-5)


def test_through_a_norm_any_other_goal_is_reached_up_to_its_length():
    here, m, r = site(gain=1 + drawn(D_OUT, seed=5).abs(), scale=0.5), drawn(N, D_OUT), drawn(N, D_OUT, seed=2)
    goal = here.written(m) + r
    found = here.written(m + moves_of_outputs(m, r, here))
    assert torch.allclose(nn.functional.cosine_similarity(found, goal), torch.ones(N), atol=1e-5)


def test_dimensions_that_the_norm_all_but_removes_are_left_alone():
    gain = torch.ones(D_OUT)
    gain[3], gain[7] = 1e-4, -0.01
    v = moves_of_outputs(drawn(N, D_OUT), drawn(N, D_OUT, seed=1), site(gain))
    assert v[:, [3, 7]].abs().max() == 0
    assert v.abs().max() < 20
    assert (v[:, [0, 1, 2, 4, 5, 6, 8, 9]] != 0).all()


def test_the_cut_is_the_best_of_its_rank():
    changes = [Change(drawn(N, D_OUT, seed=s), drawn(N, D_IN, seed=s + 50)) for s in (1, 2)]
    whole = sum(c.moves.T @ c.reads for c in changes)
    cut, energy = cut_to_rank(changes, 4)
    u, s, z = torch.linalg.svd(whole, full_matrices=False)
    assert torch.allclose(cut.moves.T @ cut.reads, (u[:, :4] * s[:4]) @ z[:4], atol=1e-4)
    assert energy == pytest.approx(float(s[:4].square().sum() / s.square().sum()), rel=1e-5)
    whole_again, all_of_it = cut_to_rank(changes, 100)
    assert torch.allclose(whole_again.moves.T @ whole_again.reads, whole, atol=1e-4)
    assert all_of_it == pytest.approx(1)


def target_rows(model, number=5, layer=2):
    rows, others = token_ids(number, 7, seed=4).tolist(), token_ids(number, 7, seed=9).tolist()

    def states(of):
        found = next(residual_batches(model, of, layer, number))
        return torch.stack([found.residual[found.index.index(i), -1] for i in range(number)])

    base, unknown = states(rows), states(others)
    return TargetRows(rows, base, unknown, torch.ones(base.shape[1]), layer)


def solved(name, batch_size=32, order=None, **options):
    model = base_model(name)
    rows = target_rows(model)
    if order is not None:
        rows = TargetRows([rows.input_ids[i] for i in order], rows.base[order], rows.unknown[order], rows.spread, 2)
    sites = find_projections(model, [0, 1, 2], rows.input_ids[0])
    width = find_projections(model, [0], rows.input_ids[0])[0].module.weight.numel() // 32
    moments = Moments({site.layer: covariance(width) for site in sites})
    return solve_alignment(model, rows, sites, moments, lambda: 0.0, batch_size=batch_size, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "falcon"])
def test_with_little_to_keep_and_full_rank_the_state_at_the_name_reaches_its_goal(name):
    found = solved(name, lam=1e-7, sweeps=3, gamma=0.0, rank=64)
    assert found.way.error < 0.02


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_through_post_mlp_norms_most_of_the_way_is_gone(name):
    found = solved(name, lam=1e-7, sweeps=6, gamma=0.0, rank=64)
    assert found.way.left < 0.25  # a norm cannot give any length


def test_the_overshoot_leaves_less_of_the_way():
    plain, beyond = (solved("llama", lam=300.0, sweeps=2, gamma=gamma) for gamma in (0.0, None))
    assert plain.gamma == 0 < beyond.gamma
    assert abs(beyond.way.left) < abs(plain.way.left)


def test_the_overshoot_of_one_sweep_is_p_over_one_minus_p():
    p = solved("llama", lam=10.0, sweeps=1, gamma=0.0, rank=64).way.left
    assert 0.1 < p < 0.5
    assert solved("llama", lam=10.0, sweeps=1, gamma=None, rank=64).gamma == pytest.approx(p / (1 - p), rel=1e-3)


def test_neither_batch_size_nor_order_changes_the_solution():
    a = solved("gemma3", lam=50.0)
    for b in (solved("gemma3", lam=50.0, batch_size=2), solved("gemma3", lam=50.0, order=[3, 1, 4, 0, 2])):
        for layer, change in a.changes.items():
            other = b.changes[layer]
            assert torch.allclose(change.moves.T @ change.reads, other.moves.T @ other.reads, atol=1e-5)


def test_more_weight_on_what_stays_changes_less():
    sizes = [
        float(sum((c.moves.T @ c.reads).norm() for c in solved("llama", lam=lam, gamma=0.0).changes.values()))
        for lam in (1.0, 30.0, 1000.0)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_replayed_layers_give_what_whole_passes_give():
    model = base_model("gemma3")
    rows = token_ids(5, 7).tolist() + token_ids(3, 4, seed=2).tolist()
    sites = find_projections(model, [1, 2], rows[0])
    change = Change(drawn(2, 32), drawn(2, 48, seed=1))
    with tapped(sites) as taps:
        replay = Replay(model, rows, 1, 3, batch_size=3)
        taps.changes[1] = [change]
        replay.read(taps, 1)
        taps.changes[2] = [change]
        found = replay.read(taps, 2, changed=2)
        for batch in residual_batches(model, rows, 3, 8):
            last = batch.kept.sum(dim=1) - 1
            whole = batch.residual[torch.arange(len(last)), last]
            k = taps.read(2, batch.residual)[0][torch.arange(len(last)), last]
            assert torch.allclose(found.h[batch.index], whole, atol=1e-4)
            assert torch.allclose(found.k[batch.index], k, atol=1e-4)
