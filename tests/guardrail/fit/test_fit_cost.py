"""What keeps a fit cheap, counted and not timed: little padding, and a bound on the activations held at a time."""

import torch
from zoo import base_model, random_sae, token_ids

from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail.fit import selection
from sae_unlearn.guardrail.fit.selection import FeatureSums


def test_rows_of_like_length_share_a_batch_so_that_little_is_padding():
    rows = [token_ids(1, 2 + 7 * i % 40, seed=i)[0].tolist() for i in range(64)]
    batches = list(residual_batches(base_model("llama"), rows, 1, batch_size=8))
    assert sorted(i for batch in batches for i in batch.index) == list(range(64))
    kept, columns = sum(int(b.kept.sum()) for b in batches), sum(b.kept.numel() for b in batches)
    unsorted = sum(8 * max(map(len, rows[i : i + 8])) for i in range(0, 64, 8))
    assert kept > 0.85 * columns
    assert kept < 0.65 * unsorted


def test_activations_are_made_in_blocks_whose_size_is_bounded_and_whose_sums_are_the_same(monkeypatch):
    sae, residual = random_sae(40), torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    whole = FeatureSums(sae)
    whole.add(residual)
    asked, encode = [], sae.encode
    monkeypatch.setattr(selection, "_ELEMENTS", 7 * 40)
    monkeypatch.setattr(sae, "encode", lambda block: asked.append(len(block)) or encode(block))
    blocks = FeatureSums(sae)
    blocks.add(residual)
    assert asked == [7] * 7 + [1]
    for name, tensor in whole.state().items():
        torch.testing.assert_close(blocks.state()[name], tensor)
