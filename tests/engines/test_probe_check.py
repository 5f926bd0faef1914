"""What a server's own test of a guardrail makes of the stored rows."""

import pytest
import zoo

from sae_unlearn import GuardrailError
from sae_unlearn.engines.probe_check import NO_PROBE, PLAIN_TOKENS, finding, rows_to_test
from sae_unlearn.guardrail.check.probe import probe_rows


def config(forget=(0.9, 0.1), retain=(0.2,), special=(0, 60)):
    calibration = {
        "probe": {"forget": [[n, n] for n in range(len(forget))], "retain": [[7, 8, 9] for _ in retain]},
        "probe_statistics": {"forget": list(forget), "retain": list(retain)},
    }
    return zoo.planted_config(layer=1, threshold=0.5, calibration=calibration, special_ids=list(special))


def test_rows_have_what_the_gate_did_unless_rounding_decides():
    assert [row.fires for row in probe_rows(config(), 100)] == [True, False, False]
    assert [row.fires for row in probe_rows(config((0.52, 0.48), ()), 100)] == [None, None]
    assert [row.fires for row in probe_rows(config((None, "x", float("nan"))), 100)][:3] == [None] * 3


def test_a_row_that_is_cut_has_no_known_outcome():
    cut = probe_rows(config(), 100, longest=2)
    assert [(row.ids, row.fires) for row in cut] == [([0, 0], True), ([1, 1], False), ([7, 8], None)]


@pytest.mark.parametrize("probe", [None, 3, {"forget": [[200]]}, {"forget": [[True]]}, {"forget": [[]]}])
def test_without_a_sound_probe_a_plain_row_has_to_be_judged(probe):
    fields = config()
    fields.calibration["probe"] = probe
    (row,) = rows_to_test(fields, 100, 50)
    assert row.ids == [50, 51, 52, 53, 54, 55, 56, 57]
    assert len(row.ids) == PLAIN_TOKENS
    assert finding("guard", [row], [True]) == NO_PROBE
    assert 60 not in rows_to_test(fields, 120, 50)[0].ids


def test_the_gate_must_do_what_it_did():
    rows = rows_to_test(config(), 100, 50)
    said = finding("guard", rows, [True, False, False])
    assert said == "it fired on 1 of 2 stored rows on the topic and 0 of 1 stored other rows, as at the fit"
    with pytest.raises(GuardrailError, match="1 different"):
        finding("guard", rows, [True, False, True])
    assert "as at the fit" not in finding("guard", rows, [True, False, True], unedited=False)
