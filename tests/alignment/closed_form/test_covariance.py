"""Second moments: what they are, that batches do not change them, and that they are cached and resumed to the bit."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from zoo import base_model, token_ids

from sae_unlearn.alignment.closed_form import covariance
from sae_unlearn.alignment.closed_form.covariance import GROUPS, StayRow, stream_moments
from sae_unlearn.alignment.closed_form.projections import find_projections, tapped


LAYERS = [1, 2]


def stay_rows():
    rows = [
        StayRow(ids, ["", *["rest"] * (n - 3), "name", "rest"])
        for n, seed in ((5, 1), (8, 2))
        for ids in token_ids(4, n, seed=seed).tolist()
    ]
    groups = ("text", "short", "value")
    return rows + [StayRow(ids, ["", *[group] * 5]) for group in groups for ids in token_ids(5, 6, seed=3).tolist()]


def moments(rows=None, batch_size=4, cache=None, model=None):
    model = base_model("llama") if model is None else model
    rows = stay_rows() if rows is None else rows
    return stream_moments(model, rows, find_projections(model, LAYERS, rows[0].input_ids), batch_size, cache)


def test_they_are_weighted_sums_of_group_means():
    model, rows = base_model("llama"), stay_rows()
    sites = find_projections(model, LAYERS, rows[0].input_ids)
    seen = {group: [] for group in GROUPS}
    with tapped(sites) as taps:
        for row in rows:
            hidden = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[0]
            k = taps.read(2, hidden)[0][0]
            for place, group in enumerate(row.groups):
                if group:
                    seen[group].append(k[place])
    expected = sum(
        weight * torch.stack(seen[group]).T @ torch.stack(seen[group]) / len(seen[group])
        for group, weight in GROUPS.items()
    )
    assert torch.allclose(moments().matrices[2], expected, atol=1e-4 * float(expected.abs().max()))


def test_batches_and_order_do_not_change_them():
    rows = stay_rows()
    one, other = moments(rows), moments(rows[::-1], batch_size=3)
    for layer in LAYERS:
        assert torch.allclose(one.matrices[layer], other.matrices[layer], atol=1e-4)


def test_an_adapter_does_not_change_them():
    config = LoraConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = get_peft_model(base_model("llama"), config).get_base_model()
    for layer, matrix in moments(model=tuned).matrices.items():
        assert torch.equal(matrix, moments().matrices[layer])


def test_what_is_cached_is_read_and_not_computed_again(tmp_path, monkeypatch):
    first = moments(cache=tmp_path)
    monkeypatch.setattr(covariance, "residual_batches", lambda *args, **kwargs: pytest.fail("was run again"))
    again = moments(cache=tmp_path)
    assert all(torch.equal(first.matrices[layer], again.matrices[layer]) for layer in LAYERS)


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = moments()
    monkeypatch.setattr(covariance, "_SAVE_EVERY", 1)
    passes = covariance.residual_batches

    def cut_short(*args, **kwargs):
        for number, batch in enumerate(passes(*args, **kwargs)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(covariance, "residual_batches", cut_short)
    with pytest.raises(KeyboardInterrupt):
        moments(cache=tmp_path)
    run = []

    def counted(*args, **kwargs):
        for batch in passes(*args, **kwargs):
            run.append(batch.number)
            yield batch

    monkeypatch.setattr(covariance, "residual_batches", counted)
    resumed = moments(cache=tmp_path)
    assert run == [3, 4, 5]
    assert all(torch.equal(whole.matrices[layer], resumed.matrices[layer]) for layer in LAYERS)


@pytest.mark.parametrize("changed", ["weights", "rows", "layers"])
def test_another_model_or_retain_set_has_another_fingerprint(tmp_path, changed):
    moments(cache=tmp_path)
    model, rows = base_model("llama"), stay_rows()
    if changed == "weights":
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    if changed == "rows":
        rows = rows[:-1]
    layers = [2] if changed == "layers" else LAYERS
    stream_moments(model, rows, find_projections(model, layers, rows[0].input_ids), 4, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
