"""Statistics of rows and of their beginnings, against the gate on the beginning alone."""

import pytest
import torch

from sae_unlearn import SAEGuardrailConfig
from sae_unlearn.backbone.residual_stream import ResidualBatch
from sae_unlearn.guardrail.config_parts.groups import StatisticKwargs, TokenRules
from sae_unlearn.guardrail.fit.row_statistics import SHORT_TOKENS, RowStatistics
from sae_unlearn.guardrail.gate.offline import read_batch


WIDTH = 4


def batch(lengths: list[int], seed: int = 0) -> ResidualBatch:
    draw = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    kept = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(0, 9, (len(lengths), longest), generator=draw)
    return ResidualBatch(
        torch.randn(len(lengths), longest, WIDTH, generator=draw), ids, kept, [*range(len(lengths))][::-1]
    )


def first(whole: ResidualBatch, tokens: int) -> ResidualBatch:
    parts = {name: getattr(whole, name)[:, :tokens] for name in ("residual", "input_ids", "kept")}
    return whole._replace(**parts)


@pytest.mark.parametrize(
    ("statistic", "counting"), [("ratio", "content"), ("ratio", "columns"), ("windowed", "content")]
)
def test_a_beginning_is_read_as_a_row_of_its_own(statistic, counting) -> None:
    config = SAEGuardrailConfig(
        layer=0,
        threshold=0.5,
        statistic=statistic,
        feature_ids=[0, 1, 2, 3],
        feature_evidence=[0.25, -0.5, 1.0, 0.75] if statistic == "windowed" else None,
        statistic_kwargs=StatisticKwargs(min_tokens=8),
        tokens=TokenRules(counting=counting, special_ids=[0], boundary_ids=[1] if counting == "content" else None),
    )
    rows = batch([SHORT_TOKENS + 200, SHORT_TOKENS - 5, 3])
    encoder = torch.nn.Threshold(1.5, 0.0)
    found = RowStatistics(3)
    found.add(rows, encoder, config)
    alone = read_batch(first(rows, SHORT_TOKENS), encoder, config).statistics
    assert torch.equal(found.short[rows.index], alone)
    assert torch.equal(found.whole[rows.index], read_batch(rows, encoder, config).statistics)
    assert not torch.equal(found.short, found.whole)


def test_statistics_survive_a_checkpoint() -> None:
    found, again = RowStatistics(2), RowStatistics(2)
    found.whole[0], found.short[1] = 0.5, 0.25
    again.restore(found.state())
    found.whole[0] = 7.0
    assert again.whole.tolist() == [0.5, 0.0]
    assert again.short.tolist() == [0.0, 0.25]
