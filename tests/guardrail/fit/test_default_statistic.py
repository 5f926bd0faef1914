"""Which statistic a fit takes if none is asked for."""

import pytest

from sae_unlearn.options.fit import GuardrailFitConfig, filled


@pytest.mark.parametrize(
    ("options", "texts", "statistic", "evidence"),
    [
        ({}, True, "windowed", "windowed"),
        ({"for_serving": True}, True, "windowed", "windowed"),
        ({}, False, "ratio", "any"),
        ({"preset": "faithful"}, True, "ratio", "any"),
        ({"evidence": "log_ratio"}, True, "ratio", "log_ratio"),
        ({"threshold": 0.1}, True, "ratio", "any"),
        ({"topk": "threshold"}, True, "ratio", "log_ratio"),
        ({"sticky": False}, True, "ratio", "log_ratio"),
        ({"statistic": "ratio"}, True, "ratio", "log_ratio"),
    ],
)
def test_windowed_is_the_default_where_it_can_be_fitted(options, texts, statistic, evidence):
    found = filled(GuardrailFitConfig(**options), texts=texts)
    assert (found["statistic"], found["evidence"]) == (statistic, evidence)
