"""Activations that are not finite fire the row that holds them, and touch no other row."""

import pytest
import torch
from guarded_calls import GREEDY, IDS, logits
from torch import nn
from zoo import guarded, padded

from sae_unlearn import record_firings
from sae_unlearn.guardrail import guard_layers


class Breaks(nn.Module):
    """A decoder layer's output with one place of the residual stream overwritten."""

    def __init__(self, model, value, row, token, feature=5):
        super().__init__()
        self.at, self.value = (row, token, feature), value
        layer = model.get_base_model().model.layers[1]
        self.handle = layer.register_forward_hook(self.overwrite, prepend=True)

    def overwrite(self, module, args, output):
        if output.shape[1] > self.at[1]:
            output = output.clone()
            output[self.at] = self.value
        return output


NOT_FINITE = [torch.nan, torch.inf, -torch.inf]
GATES = [
    {},
    {"gate_scope": "prefix"},
    {"statistic": "windowed", "threshold": 50.0},
    {"sticky": False},
    {"clamp_mode": "all"},
]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_row_whose_activations_are_not_finite_fires_and_no_other_row_is_touched(gate, value):
    model = guarded("llama", **{"threshold": 0.99} | gate)
    with record_firings(model) as before:
        plain = logits(model)
    Breaks(model, value, row=2, token=4)
    with record_firings(model) as firings:
        found = logits(model)
    assert [f.finite for f in firings] == [row != 2 for row in range(len(IDS))]
    assert firings[2].fired
    assert firings[2].tokens == firings[2].evidence == IDS.shape[1]
    assert not found[2, 4:].isfinite().any()
    others = [row for row in range(len(IDS)) if row != 2]
    torch.testing.assert_close(found[others], plain[others])
    assert [firings[row] for row in others] == [before[row] for row in others]


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_infinity_that_every_feature_reads_alike_is_found(sign):
    """-inf is below every threshold, and +inf is above."""
    model = guarded("llama", threshold=0.99)
    guard_layers(model)[0].guardrail("default").encoder.weight.data[:, 5] = 1.0
    Breaks(model, sign * torch.inf, row=0, token=7)
    with record_firings(model) as firings:
        logits(model)
    assert firings[0].fired
    assert not firings[0].finite


def test_sampling_from_such_a_row_raises_and_a_greedy_answer_holds_nothing():
    model = guarded("llama", threshold=0.99)
    plain = model.generate(input_ids=IDS, **GREEDY)
    Breaks(model, torch.nan, row=1, token=3)
    with pytest.raises(RuntimeError, match="nan"):
        model.generate(input_ids=IDS, max_new_tokens=2, do_sample=True)
    with record_firings(model) as firings:
        found = model.generate(input_ids=IDS, **GREEDY)
    assert found[1, IDS.shape[1] :].unique().numel() == 1
    assert torch.equal(found[[0, 2, 3, 4, 5]], plain[[0, 2, 3, 4, 5]])
    assert [f.row for f in firings if not f.finite] == [1]


@pytest.mark.parametrize("counting", ["content", "columns"])
def test_what_the_mask_hides_may_be_anything(counting):
    model = guarded("llama", threshold=0.99, counting=counting)
    batch = padded([IDS[0], IDS[1][:5]])
    with torch.no_grad():
        plain = model(**batch).logits
    Breaks(model, torch.nan, row=1, token=2)  # padding: the row is 5 tokens of 12
    with record_firings(model) as firings, torch.no_grad():
        found = model(**batch).logits
    assert all(f.finite and not f.fired for f in firings)
    torch.testing.assert_close(found[0], plain[0])


def test_to_find_it_waits_for_no_device():
    """On the CPU nothing waits; what would wait elsewhere is to read a value out of a tensor."""
    model = guarded("llama", threshold=0.99)
    logits(model)  # the first call looks at the weights
    read = []
    originals = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "__bool__", "__int__", "__float__")}

    def noting(name):
        return lambda tensor, *args: read.append(name) or originals[name](tensor, *args)

    guard, seen = guard_layers(model)[0], []
    original = guard._edit

    def edit(*args):
        for name in originals:
            setattr(torch.Tensor, name, noting(name))
        try:
            seen.append(True)
            return original(*args)
        finally:
            for name, function in originals.items():
                setattr(torch.Tensor, name, function)

    guard._edit = edit
    logits(model)
    assert seen == [True]
    assert read == []
