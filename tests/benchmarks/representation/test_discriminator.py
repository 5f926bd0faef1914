"""Probes and discriminators on synthetic states: ten targets in 640 dimensions, six templates."""

import sys

import pytest
import torch

from benchmarks.representation.probes import fit_base_probe, read_base_probe, refit_discriminator
from sae_unlearn.errors import UnlearnError


D, TEMPLATES = 640, 3


def draw(n, seed, shift=0.0, spread=1.0, noise=0.3):
    """Entities around `shift` in the first 20 dimensions, with what each template adds and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.zeros(D)
    centre[:20] = shift
    of_template = 3 * torch.randn(TEMPLATES, D, generator=torch.Generator().manual_seed(99))
    entities = centre + spread * torch.randn(n, 1, D, generator=generator)
    return entities + of_template + noise * torch.randn(n, TEMPLATES, D, generator=generator)


KNOWN, UNKNOWN = draw(40, 1, shift=2.0), draw(40, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "kernel"])
def test_targets_that_are_unknowns_are_at_the_floor_and_the_floor_at_a_half(kind):
    found = []
    for seed in range(6):
        unknown = draw(30, 200 + seed)
        found.append(refit_discriminator(draw(10, 100 + seed), KNOWN, unknown, kind, folds=4, repeats=2, seed=seed))
    assert sum(d.floor.value for d in found) / len(found) == pytest.approx(0.5, abs=0.1)
    assert sum(d.targets.value for d in found) / len(found) == pytest.approx(0.5, abs=0.12)
    assert all(d.n == d.targets.n == 10 for d in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "kernel"])
def test_separated_targets_are_at_the_ceiling(kind):
    found = refit_discriminator(draw(10, 3, shift=2.0), KNOWN, UNKNOWN, kind, folds=4, repeats=2)
    assert found.targets.value > 0.93
    assert found.ceiling.value > 0.93
    assert found.position == pytest.approx(1.0, abs=0.1)
    assert found.targets.low <= found.targets.value <= found.targets.high


@pytest.mark.slow
def test_targets_collapsed_onto_the_unknown_mean_are_caught_by_the_kernel():
    collapsed = draw(10, 4, spread=0.05, noise=0.05)
    assert refit_discriminator(collapsed, KNOWN, UNKNOWN, "kernel", repeats=3).targets.value > 0.95
    # the base probe is content with them, which is why it does not suffice
    probe = fit_base_probe(KNOWN, UNKNOWN)
    assert read_base_probe(probe, collapsed, draw(40, 5)).auc.value < 0.65


@pytest.mark.slow
def test_templates_of_an_entity_are_never_on_both_sides():
    """Entities that differ from each other only by a mark of their own: rows held out alone would be told by it."""
    found = []
    for seed in range(8):
        marked = draw(24, seed, spread=4.0, noise=0.01)[..., :60]
        found.append(
            refit_discriminator(marked[:8], marked[8:16], marked[:], n=8, folds=4, repeats=1, seed=seed).floor.value
        )
    assert sum(found) / len(found) < 0.62  # rows held out without their entity give 1.0


def test_the_base_probe_reads_known_as_known_and_unknown_as_unknown():
    probe = fit_base_probe(KNOWN, UNKNOWN)
    held_out = draw(40, 7)
    known = read_base_probe(probe, draw(12, 8, shift=2.0), held_out)
    assert known.p_known.value > 0.7
    assert known.auc.value > 0.97
    assert known.p_known.n == known.auc.n == 12
    unknown = read_base_probe(probe, draw(12, 9), held_out)
    assert unknown.p_known.value < 0.4
    assert unknown.auc.low < 0.5 < unknown.auc.high


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers():
    targets = draw(10, 10)
    one, two = (refit_discriminator(targets, KNOWN, UNKNOWN, repeats=2, seed=3) for _ in range(2))
    assert one == two


def test_too_few_entities_are_refused():
    with pytest.raises(UnlearnError, match=r"^n=3: .*targets=10"):
        refit_discriminator(draw(10, 1), KNOWN, UNKNOWN[:7])


def test_states_of_other_templates_are_refused():
    with pytest.raises(UnlearnError, match=r"^\[templates, d\]=.*'unknown': \[2, 640\]"):
        refit_discriminator(draw(10, 1), KNOWN, UNKNOWN[:, :2])


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"\[eval\]"):
        fit_base_probe(KNOWN, UNKNOWN)
