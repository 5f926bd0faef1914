"""Each part of the loss: its equation, and the four traps."""

import pytest
import torch
from torch.nn import functional as F

from sae_unlearn import SparseAutoencoder
from sae_unlearn.alignment import AlignmentError, SAEAlignmentConfig
from sae_unlearn.alignment.latents import LatentCodes, Latents, RawCodes
from sae_unlearn.alignment.loss import AWAY, TOWARD, Standing, away_part, hidden_mse, kl_to_base
from sae_unlearn.alignment.metrics import variance_ratio


ROWS, N, KNOWN = 5, 6, 3


def standing(seed: int = 0, **parts: torch.Tensor) -> Standing:
    """A batch of five targets in two templates, six codes of which the first three are known latents."""
    g = torch.Generator().manual_seed(seed)
    group = torch.tensor([0, 0, 0, 1, 1])
    unknown, known = torch.randn(2, N, generator=g), torch.randn(2, N, generator=g) + 4
    bank = torch.randn(40, N, generator=g)
    values = {
        "z": torch.randn(ROWS, N, generator=g).requires_grad_(),
        "pair": torch.randn(ROWS, N, generator=g),
        "contrast": torch.randn(ROWS, N, generator=g) + 4,
        "unknown_mean": unknown[group],
        "known_mean": known[group],
        "limit": unknown[group] + 1.6,
        "scale": (torch.rand(2, N, generator=g) + 0.5)[group],
        "group": group,
        "bank": bank,
        "bank_group": torch.arange(40) % 2,
        "known": slice(0, KNOWN),
    }
    return Standing(**{**values, **parts})


def test_paired_is_the_mean_huber_distance_to_the_pair_in_units_of_the_scale():
    at = standing()
    x = ((at.z - at.pair) / at.scale).detach()
    expected = torch.where(x.abs() <= 1, x**2 / 2, x.abs() - 0.5).mean(dim=1)
    torch.testing.assert_close(TOWARD["paired"](at), expected)


def test_centroid_is_the_squared_distance_to_the_mean():
    at = standing()
    torch.testing.assert_close(TOWARD["centroid"](at), (((at.z - at.unknown_mean) / at.scale) ** 2).mean(dim=1))


def test_cosine_is_zero_for_the_same_direction_and_two_for_the_opposite():
    at = standing()
    along = at.unknown_mean + 3 * (at.pair - at.unknown_mean)
    against = at.unknown_mean - 2 * (at.pair - at.unknown_mean)
    torch.testing.assert_close(TOWARD["cosine"](at._replace(z=along)), torch.zeros(ROWS), atol=1e-5, rtol=0)
    torch.testing.assert_close(TOWARD["cosine"](at._replace(z=against)), torch.full((ROWS,), 2.0))


def test_mmd_is_zero_for_the_unknown_entities_themselves_and_grows_with_the_distance():
    base = standing()
    bank = base.bank[base.bank_group == 0]
    group = torch.zeros(len(bank), dtype=torch.long)
    at = base._replace(z=bank, group=group, scale=torch.ones_like(bank))
    same, near, far = (float(TOWARD["mmd"](at._replace(z=bank + shift))[0]) for shift in (0.0, 0.5, 3.0))
    assert abs(same) < 1e-6 < near < far


def test_mmd_gives_each_row_the_value_of_its_own_template():
    at = standing()
    values = TOWARD["mmd"](at)
    assert torch.equal(values[:3], values[:1].expand(3))
    assert torch.equal(values[3:], values[3:4].expand(2))
    alone = at._replace(**{k: getattr(at, k)[3:] for k in ("z", "pair", "contrast", "scale", "group")})
    torch.testing.assert_close(TOWARD["mmd"](alone), values[3:])


def test_the_hinge_looks_at_known_latents_alone_and_ends_at_the_limit():
    at = standing()
    inside = at.z.detach().clone()
    inside[:, :KNOWN] = at.limit[:, :KNOWN]
    inside[:, KNOWN:] += 100
    assert torch.equal(AWAY["hinge"](at._replace(z=inside)), torch.zeros(ROWS))
    over = inside.clone()
    over[:, 0] += 2 * at.scale[:, 0]
    torch.testing.assert_close(AWAY["hinge"](at._replace(z=over)), torch.full((ROWS,), 2 / KNOWN))


def test_the_triplet_rests_once_the_unknown_pair_is_nearer_by_the_margin():
    at = standing()
    assert torch.equal(AWAY["triplet"](at._replace(z=at.pair, contrast=at.pair + 10 * at.scale)), torch.zeros(ROWS))
    torch.testing.assert_close(AWAY["triplet"](at._replace(z=at.pair, contrast=at.pair)), torch.ones(ROWS))


@pytest.mark.parametrize("lam", [0.25, 0.5, 0.75])
def test_the_optimum_of_repulsion_is_where_the_algebra_says(lam):
    at = standing()
    at = at._replace(**{k: getattr(at, k).double() for k in ("z", "unknown_mean", "known_mean", "scale")})
    expected = (at.unknown_mean - lam * at.known_mean) / (1 - lam)
    z = at.z.detach().clone().requires_grad_()
    here = at._replace(z=expected.clone().requires_grad_())
    (TOWARD["centroid"](here) + lam * away_part("repel", "centroid")(here)).sum().backward()
    assert float(here.z.grad.abs().max()) < 1e-12
    optimizer = torch.optim.LBFGS([z], max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        now = at._replace(z=z)
        loss = (TOWARD["centroid"](now) + lam * away_part("repel", "centroid")(now)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(z.detach(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("preset", ["centroid", "default"])
def test_repulsion_without_a_minimum_is_refused(tmp_path, preset):
    with pytest.raises(AlignmentError, match=r'^away="repel": .*lambda.*1 / 1'):
        SAEAlignmentConfig(str(tmp_path), preset=preset, away="repel", away_weight=1.0)


@pytest.mark.parametrize("toward", ["cosine", "mmd"])
def test_repulsion_against_a_bounded_distance_is_refused(tmp_path, toward):
    with pytest.raises(AlignmentError, match=r"away=\"repel\": expected toward="):
        SAEAlignmentConfig(str(tmp_path), toward=toward, away="repel")


def test_repulsion_beside_pairs_is_bounded_below():
    at = standing()
    values = []
    for distance in (1e2, 1e4, 1e6):
        far = at._replace(z=at.pair - distance * (at.contrast - at.pair))
        values.append(float((TOWARD["paired"](far) + 0.9 * away_part("repel", "paired")(far)).sum()))
    assert values[0] < values[1] < values[2]


def test_gradient_reaches_a_latent_that_is_off():
    sae = SparseAutoencoder(
        torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4), architecture="jumprelu", threshold=torch.ones(4)
    )
    h = torch.full((1, 4), -1.0, requires_grad=True)
    assert not sae.encode(h).any()
    codes = LatentCodes(sae, Latents([0], [3], [1.0], [1.0]))(h)
    codes.sum().backward()
    assert h.grad[0].tolist() == [1.0, 0.0, 0.0, 1.0]
    h.grad = None
    sae.encode(h).sum().backward()
    assert not h.grad.any(), "the activations themselves pass nothing on: the trap that the codes avoid"


def test_latent_codes_are_the_columns_of_the_full_pre_activations():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(5, 9, generator=g)
    sae = SparseAutoencoder(W, torch.randn(9, generator=g), W.T.contiguous(), torch.zeros(5), architecture="standard")
    h = torch.randn(3, 5, generator=g)
    code = LatentCodes(sae, Latents([7, 2], [4], [1.0, 1.0], [1.0]))
    torch.testing.assert_close(code(h), sae.pre_activations(h)[:, [7, 2, 4]])
    assert (code.known, code.unknown) == (slice(0, 2), slice(2, 3))


def test_raw_codes_are_higher_for_known_entities_and_the_most_telling_come_first():
    g = torch.Generator().manual_seed(0)
    unknown = torch.randn(200, 4, generator=g)
    known = torch.randn(200, 4, generator=g) + torch.tensor([0.0, -5.0, 1.0, 0.0])
    code = RawCodes(known, unknown, 2)
    assert code.order[:2].tolist() == [1, 2]
    assert code.known == slice(0, 2)
    assert (code(known).mean(dim=0) > code(unknown).mean(dim=0)).all()


def test_kl_is_that_of_the_base_to_the_tuned_summed_over_tokens():
    g = torch.Generator().manual_seed(0)
    base, tuned = torch.randn(3, 7, generator=g), torch.randn(3, 7, generator=g)
    p, q = base.softmax(-1), tuned.softmax(-1)
    torch.testing.assert_close(kl_to_base(base, tuned), (p * (p / q).log()).sum())
    assert float(kl_to_base(base, base)) == 0


def test_hidden_mse_is_in_units_of_the_spread():
    h, base = torch.tensor([[2.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    torch.testing.assert_close(hidden_mse(h, base, torch.tensor([1.0, 2.0])), torch.tensor([4.0]))


def test_the_variance_ratio_is_one_for_the_same_spread_and_zero_for_a_point():
    g = torch.Generator().manual_seed(0)
    scale = torch.rand(N, generator=g) + 0.5
    z = torch.randn(4000, N, generator=g) * scale
    group = torch.arange(4000) % 2
    spread = scale.expand(4000, N)
    assert variance_ratio(z + 5 * group[:, None], group, spread) == pytest.approx(1, abs=0.05)
    assert variance_ratio(z[:1].expand(4000, N), group, spread) == 0
    assert variance_ratio(z[:2], group[:2], spread[:2]) != variance_ratio(z[:2], group[:2], spread[:2])  # NaN


def test_each_part_has_a_gradient_toward_less_of_it():
    for name, part in [*TOWARD.items(), ("hinge", AWAY["hinge"]), ("triplet", AWAY["triplet"])]:
        at = standing(3)
        at = at._replace(z=(at.contrast + 0.1 * at.z).detach().requires_grad_())  # targets that look known
        before = part(at).sum()
        (grad,) = torch.autograd.grad(before, at.z)
        after = part(at._replace(z=(at.z - 1e-3 * F.normalize(grad, dim=None) * ROWS).detach())).sum()
        assert after < before, name
