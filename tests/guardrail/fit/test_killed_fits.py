"""Kills while a guardrail is fitted: the fit continues, and nothing is left on the model."""

from itertools import count
from pathlib import Path

import pytest
import torch
from fitting import config_of, fit, same_fit
from moments import MOMENTS
from tiny_topic import topic_texts
from traces import traces
from zoo import base_model

from sae_unlearn.guardrail.fit import passes as fit_passes


FORGET, RETAIN = (topic_texts(side, number, seed=5, words=60) for side, number in (("forget", 70), ("retain", 90)))


def fitted(folder: Path | None = None, model: torch.nn.Module | None = None) -> torch.nn.Module:
    return fit(model, FORGET, RETAIN, batch_size=4, checkpoint_dir=folder)


@pytest.mark.slow
def test_a_fit_that_was_killed_at_any_of_its_writes_goes_on_to_the_unbroken_result(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_passes, "EVERY", 4)
    whole = fitted()
    with MOMENTS.watch(tmp_path / "fit", tmp_path / "copies") as copies:
        fitted(tmp_path / "fit")
    left = {tuple(path.read_bytes() for path in sorted(copied.glob("fit-*"))): copied for copied in copies}
    assert len(copies) > 30
    assert len(left) > 10
    for copied in left.values():
        resumed = fitted(copied)
        same_fit(whole, resumed)
        assert config_of(resumed).calibration == config_of(whole).calibration
        assert not list(copied.glob("fit-*"))


@pytest.mark.slow
def test_a_fit_that_is_interrupted_at_any_of_its_writes_leaves_nothing_on_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_passes, "EVERY", 12)
    model = base_model("llama")
    untouched = traces(model)
    for number in count():
        try:
            with MOMENTS.watch(tmp_path / f"fit{number}", tmp_path / f"copies{number}", interrupt_at=number):
                fitted(tmp_path / f"fit{number}", model)
        except KeyboardInterrupt:
            assert traces(model) == untouched
        else:
            break
    assert number > 15
