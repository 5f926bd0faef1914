"""Variance ratios and held-out latents."""

import pytest
import torch
from tiny_topic import tiny_parts

from benchmarks.representation.collapse import collapse_ratio
from benchmarks.representation.held_out_latents import held_out_firing, held_out_latents
from sae_unlearn.errors import UnlearnError


def codes(n, seed, spread=1.0, d=30):
    generator = torch.Generator().manual_seed(seed)
    of_template = 5 * torch.randn(3, d, generator=torch.Generator().manual_seed(9))
    return of_template + spread * torch.randn(n, 3, d, generator=generator)


def test_targets_that_spread_as_unknowns_do_raise_no_alarm():
    found = collapse_ratio(codes(12, 1), codes(40, 2))
    assert found.mean.value == pytest.approx(1.0, abs=0.15)
    assert found.pooled.value == pytest.approx(1.0, abs=0.15)
    assert found.mean.low < 1 < found.mean.high
    assert not found.alarm
    assert (found.mean.n, found.dimensions) == (12, 30)


def test_collapse_raises_the_alarm_although_templates_differ():
    found = collapse_ratio(codes(12, 1, spread=0.1), codes(40, 2))
    assert found.mean.high < 0.1
    assert found.alarm


def test_one_dimension_that_hardly_varies_in_the_unknowns_hides_no_collapse():
    targets, unknown = codes(12, 1, spread=0.1), codes(40, 2)
    targets[..., 0], unknown[..., 0] = 1e-3 * codes(12, 3)[..., 0], 1e-6 * codes(40, 4)[..., 0]
    found = collapse_ratio(targets, unknown)
    assert found.mean.value > 1
    assert found.alarm


def test_dimensions_in_which_unknowns_do_not_vary_are_left_out():
    unknown = codes(40, 2)
    unknown[..., :5] = 0
    found = collapse_ratio(codes(12, 1), unknown)
    assert found.dimensions == 25
    assert found.mean.value < 1.3


@pytest.mark.parametrize(
    ("targets", "unknown", "message"),
    [
        (torch.ones(1, 3, 4), torch.ones(5, 3, 4), r"targets=\[1, 3, 4\]"),
        (torch.ones(2, 2, 4), torch.ones(5, 3, 4), r"targets=\[2, 2, 4\], unknown=\[5, 3, 4\]"),
        (torch.ones(2, 3, 4), torch.ones(5, 3, 4), "^unknown: "),
    ],
)
def test_what_has_no_ratio_is_refused(targets, unknown, message):
    with pytest.raises(UnlearnError, match=message):
        collapse_ratio(targets, unknown)


def test_held_out_latents_follow_or_stay():
    _, _, sae = tiny_parts()
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, sae.d_in, generator=generator)

    def states(centre, n, seed):
        return centre + 0.2 * torch.randn(n, 2, sae.d_in, generator=torch.Generator().manual_seed(seed))

    known, unknown = states(base[0], 20, 1), states(base[1], 20, 2)
    first_known, first_unknown = held_out_latents(sae, known, unknown, trained_on=[], number=8)
    left = held_out_latents(sae, known, unknown, trained_on=[*first_known, *first_unknown], number=8)
    assert not {*first_known, *first_unknown} & {*left[0], *left[1]}
    assert len(left[0]) == len(left[1]) == 8
    fresh = {"known": states(base[0], 20, 3), "unknown": states(base[1], 20, 4)}
    moved = held_out_firing(sae, left[0], states(base[1], 10, 5), **fresh)
    stayed = held_out_firing(sae, left[0], states(base[0], 10, 5), **fresh)
    assert moved.known.value > moved.unknown.value + 0.5
    assert moved.position == pytest.approx(0.0, abs=0.15)
    assert stayed.position == pytest.approx(1.0, abs=0.15)
    assert moved.targets.n == 10
    other_way = held_out_firing(sae, left[1], states(base[1], 10, 5), **fresh)
    assert other_way.unknown.value > other_way.known.value + 0.5


def test_no_latents_to_read_is_refused():
    _, _, sae = tiny_parts()
    with pytest.raises(UnlearnError, match=r"^ids=\[\]"):
        held_out_firing(sae, [], *[torch.randn(2, 2, sae.d_in)] * 3)
