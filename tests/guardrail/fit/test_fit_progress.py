"""Progress bars of a fit."""

import re

import pytest
from fitting import FORGET, RETAIN, config_of, fit

from sae_unlearn.guardrail.fit import passes as fit_passes


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_or_not(shown, capsys):
    fit(progress=shown)
    assert ("features" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("given", [list, iter], ids=["lists", "streams"])
def test_every_bar_ends_at_its_last_row(given, processes, monkeypatch, capsys):
    """Also where documents are cut into several rows, where nobody knows how many there are, and where another process
    runs the last batch."""
    monkeypatch.setattr(fit_passes, "is_mine", lambda number: number % processes == 0)
    corpora = config_of(
        fit(forget=given(FORGET), retain=given(RETAIN), max_length=12, batch_size=5, progress=True)
    ).calibration["corpora"]
    uses = {"features": "selection_rows", "threshold": "threshold_rows", "report": "report_rows"}
    wanted = {f"{role}: {use}": rows[name] for role, rows in corpora.items() for use, name in uses.items()}
    assert ends_of_bars(capsys.readouterr().err) == {title: f"100% {n}/{n}" for title, n in wanted.items()}


def ends_of_bars(said):
    """The last that each progress bar showed."""
    shown = re.findall(r"(\w+: \w+): +(\d+%)\|[^|]*\| (\d+/\d+)", said)
    return {title: f"{share} {rows}" for title, share, rows in shown}
