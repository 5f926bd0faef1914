"""Two processes fit what one does."""

from pathlib import Path

import pytest
import torch
from fitted_in_processes import fitted
from launched import launch


HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("two")
    launch(HERE / "fitted_in_processes.py", out)
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["usual", "short", "topk", "windowed"])
def test_two_processes_choose_the_features_the_threshold_and_the_table_of_one(two, kind):
    one = fitted(kind)
    assert [found["processes"] for found in two] == [2, 2]
    for found in two:
        assert found[kind]["features"] == one["features"]
        assert found[kind]["threshold"] == one["threshold"]
        assert nearly(found[kind]["calibration"], one["calibration"])
        for name, tensor in one["tensors"].items():
            torch.testing.assert_close(found[kind]["tensors"][name], tensor, rtol=1e-5, atol=1e-6)


def nearly(found, expected):
    """Whether nested data is the same up to the rounding of sums."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(nearly(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(nearly, found, expected))
    return found == pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else found == expected


def test_both_processes_end_with_the_same_guardrail_to_the_last_bit(two):
    for kind in ("usual", "short", "topk", "windowed"):
        first, second = (found[kind] for found in two)
        assert first["calibration"] == second["calibration"]
        assert all(torch.equal(tensor, second["tensors"][name]) for name, tensor in first["tensors"].items())
