"""Which rows fire, from which token on, and which tokens are edited."""

import pytest
import torch
from forward_calls import GREEDY, SEVERAL, firings_of, forward, part
from zoo import BOS, EOS, PAD, LayerTap, base_model, guarded, padded, token_ids

from sae_unlearn.guardrail.config_parts.validation import CHOICES


def fields_of(statistic):
    """Fields with which the gate divides the rows of these tests."""
    return {"threshold": 0.5 if statistic == "windowed" else 0.55}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["sequence", "prefix"])
@pytest.mark.parametrize("statistic", CHOICES["statistic"])
@pytest.mark.parametrize("architecture", SEVERAL)
def test_records_of_a_batch_are_those_of_its_rows_bit_for_bit(architecture, statistic, scope):
    model = guarded(architecture, statistic=statistic, gate_scope=scope, min_tokens=4, **fields_of(statistic))
    rows = [token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15, 9, 5)]

    def together(side):
        batch = padded(rows, side)
        if architecture == "gpt2":  # learned positions, which transformers numbers by itself in `generate` only
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return firings_of(model, lambda: model(**batch))

    def singles():
        return [firings_of(model, lambda row=row: model(input_ids=row[None]))[0] for row in rows]

    def facts(firings):
        return [(f.statistic, f.fired, f.at_token, f.evidence, f.tokens) for f in firings]

    expected = facts(singles())
    assert len({statistic for statistic, *_ in expected}) >= 3
    for side in ("left", "right"):
        assert facts(together(side)) == expected


@pytest.mark.parametrize("statistic", CHOICES["statistic"])
def test_generation_with_a_cache_is_generation_without_where_each_token_is_judged_by_its_prefix(statistic):
    model = guarded("llama", statistic=statistic, gate_scope="prefix", min_tokens=4, **fields_of(statistic))
    batch = padded([token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15, 9, 5)])
    out = []
    cached = firings_of(model, lambda: out.append(model.generate(**batch, **GREEDY)))
    uncached = firings_of(model, lambda: out.append(model.generate(**batch, **GREEDY, use_cache=False)))
    assert torch.equal(*out)
    assert [f.statistic for f in cached] == [f.statistic for f in uncached[-6:]]
    assert {f.at_token is not None and f.at_token > n for f, n in zip(cached, (4, 7, 12, 15, 9, 5), strict=True)} == {
        True,
        False,
    }


def late_row(model, length=7):
    """A prompt that is quiet and fires while it is answered, the answer, and the length at which it fired."""
    rows, out = token_ids(256, length, seed=0), []
    firings = firings_of(model, lambda: out.append(model.generate(input_ids=rows, **GREEDY)))
    late = [f for f in firings if f.at_token and length + 2 < f.at_token < length + 9 and f.tokens == length + 11]
    return rows[late[0].row][None], out[0][late[0].row][None], late[0].at_token


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3"])
def test_a_guard_quiet_on_the_prompt_fires_at_a_generated_token_and_stays_fired(architecture):
    model, base = guarded(architecture, threshold=0.5, min_tokens=8), base_model(architecture)
    row, answer, fired_at = late_row(model)
    with LayerTap(model) as tap:
        model.generate(input_ids=row, **GREEDY)
    hot = part(model)[0](torch.cat(tap.before, dim=1))[0].gt(0).any(-1)
    edited = tap.edits()[0].abs().amax(-1) > 0
    assert hot[: fired_at - 1].any()  # hot tokens before the firing were let through, and are in the cache so
    assert not edited[: fired_at - 1].any()
    assert edited[fired_at - 1]
    assert torch.equal(edited[fired_at - 1 :], hot[fired_at - 1 :])
    plain = base.generate(input_ids=row, **GREEDY)
    assert torch.equal(answer[:, :fired_at], plain[:, :fired_at])
    # the same tokens in one plain pass are judged whole: there the hot tokens of the prompt are edited too
    with LayerTap(model) as whole:
        forward(model, input_ids=answer[:, :fired_at])
    assert torch.equal(whole.edits()[0].abs().amax(-1) > 0, hot[:fired_at])


@pytest.mark.parametrize("sticky", [True, False])
def test_sticky_decides_whether_a_row_that_fired_stays_fired(sticky):
    model = guarded("llama", threshold=0.5, gate_scope="prefix", sticky=sticky)
    with LayerTap(model) as tap:
        forward(model, input_ids=token_ids(32, 20))
    hot = part(model)[0](tap.before[0]).gt(0).any(-1)
    running = hot.cumsum(1) / torch.arange(1, 21)
    crossed = running > 0.5
    fired = crossed.cummax(1).values if sticky else crossed
    assert not torch.equal(crossed, crossed.cummax(1).values)
    assert torch.equal(tap.edits().abs().amax(-1) > 0, fired & hot)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma2"])
def test_special_tokens_are_neither_hot_nor_counted_nor_clamped(architecture):
    ids = token_ids(8, 12)
    ids[:, 0], ids[:, 4], ids[:, 9] = BOS, PAD, EOS
    special = torch.isin(ids, torch.tensor([PAD, BOS, EOS]))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    edited, tokens = {}, {}
    for name, named in (("named", [PAD, BOS, EOS]), ("unnamed", None)):
        model = guarded(architecture, special_ids=named, threshold=0.1)
        part(model)[0].threshold.data.fill_(0.0)  # nearly every token has an active feature
        with LayerTap(model) as tap:
            firings = firings_of(model, lambda model=model: model(**inputs))
        edited[name] = tap.edits().abs().amax(-1) > 0
        tokens[name] = {f.tokens for f in firings}
    assert edited["unnamed"][special].any()
    assert not edited["named"][special].any()
    assert edited["named"][~special].any()
    assert tokens == {"named": {9}, "unnamed": {12}}


@pytest.mark.parametrize("clamp_mode", ["fired", "all"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_nan_at_padding_is_never_read(side, clamp_mode):
    model = guarded("llama", clamp_mode=clamp_mode)
    batch = padded([token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15)], side)
    kept = batch["attention_mask"].bool()
    with LayerTap(model) as clean:
        expected = firings_of(model, lambda: model(**batch))
    layer = clean.decoder_layer
    plant_nan = layer.register_forward_hook(
        lambda m, args, out: out.masked_fill(~kept[..., None], torch.nan), prepend=True
    )
    outputs = []
    layer.register_forward_hook(lambda m, args, out: outputs.append(out))
    found = firings_of(model, lambda: model(**batch))
    plant_nan.remove()
    assert found == expected
    assert any(f.fired for f in found)
    assert outputs[0][~kept].isnan().all()
    assert torch.equal(outputs[0][kept], clean.after[0][kept])


def test_published_counting_counts_columns_and_never_touches_column_0():
    model = guarded("llama", counting="columns", threshold=0.1)
    part(model)[0].bias.data.fill_(1e6)  # every token has an active feature
    batch = padded([token_ids(1, n, seed=n)[0] for n in (4, 8)])
    with LayerTap(model) as tap:
        firings = firings_of(model, lambda: model.generate(**batch, **GREEDY))
    assert [f.tokens for f in firings] == [19, 19]
    assert [f.evidence for f in firings] == [18, 18]
    edited = tap.edits().abs().amax(-1) > 0
    assert not edited[:, 0].any()
    assert edited[:, 1:].all()
