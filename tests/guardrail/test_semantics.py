"""What a guardrail computes, and what it refuses to compute."""

import copy
import threading

import pytest
import torch
from config_fields import assign
from peft import get_peft_model
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.generation.configuration_utils import CompileConfig
from upstream import dynamic_caches_are_emptied
from zoo import (
    BOS,
    EOS,
    PAD,
    WIDTH,
    LayerTap,
    base_model,
    guarded,
    padded,
    plant,
    planted_config,
    token_ids,
    with_cache,
)

from sae_unlearn import GuardrailNotReady, SparseAutoencoder, attach_guardrail, record_firings
from sae_unlearn.backbone.call_arguments import cache_name, cache_of
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.config_validation import CHOICES


SEVERAL = ("llama", "gemma3", "gpt2", "mixtral", "falcon_h1")
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def firings_of(model, call):
    with record_firings(model) as firings, torch.no_grad():
        call()
    return list(firings)


def forward(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def part(model, adapter="default"):
    layer = next(x for x in guard_layers(model) if adapter in x.guard_config)
    return layer.guardrail(adapter)[1:]


# ------------------------------------------------------------------------------------------------ the edit is the SAE's


@pytest.mark.parametrize("clamp_mode", ["fired", "all"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "batchtopk"])
@pytest.mark.parametrize("architecture", SEVERAL)
def test_sliced_guard_is_the_whole_sae_clamped_with_its_error_kept(architecture, kind, clamp_mode):
    generator = torch.Generator().manual_seed(0)
    d_sae, ids = 64, [5, 17, 60, 31]
    W_enc = nn.functional.normalize(torch.randn(WIDTH, d_sae, generator=generator, dtype=torch.float64), dim=0)
    b_enc, W_dec, b_dec = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.1
        for shape in ((d_sae,), (d_sae, WIDTH), (WIDTH,))
    )
    threshold = None if kind == "standard" else torch.full((d_sae,), 0.4, dtype=torch.float64)
    W_dec = W_dec * (W_enc.T * W_dec).sum(dim=1, keepdim=True).sign()  # an edit lowers its feature, as in a trained SAE
    sae = SparseAutoencoder(W_enc, b_enc, W_dec, b_dec, architecture=kind, threshold=threshold, layer=1)
    config = planted_config(feature_ids=ids, threshold=0.3, clamp_mode=clamp_mode, clamp_value=-7.0)
    model = attach_guardrail(base_model(architecture), config, sae=sae)
    model.double()
    if architecture == "mixtral":
        model.get_base_model().set_experts_implementation("eager")  # grouped matrix products know no float64
    part(model)[0].weight.data.copy_(W_enc[:, ids].T)  # the artefact is float32: give it back its last bits
    part(model)[0].bias.data.copy_(b_enc[ids])
    part(model)[0].threshold.data.fill_(0.0 if threshold is None else 0.4)
    part(model)[1].weight.data.copy_(W_dec[ids])
    rows = [token_ids(1, n, seed=n)[0] for n in (3, 6, 9, 12, 15)]
    batch = padded(rows)
    with LayerTap(model) as tap:
        forward(model, **batch)
    h, found = tap.before[0], tap.after[0]
    assert h.dtype == torch.float64
    kept = batch["attention_mask"].bool()
    a = sae.encode(h)
    hot = (a[..., ids] > 0).any(-1) & kept
    fires = hot.sum(1) / kept.sum(1) > 0.3
    clamped = a.clone()
    chosen = a[..., ids] > 0 if clamp_mode == "fired" else torch.ones_like(a[..., ids], dtype=torch.bool)
    clamped[..., ids] = torch.where(chosen, torch.full_like(a[..., ids], -7.0), a[..., ids])
    expected = sae.decode(clamped) + (h - sae.decode(a))
    expected = torch.where((hot & fires[:, None])[..., None], expected, h)
    assert fires.any()
    assert (expected - h).abs().max() > 1
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-9, rtol=0)


def test_a_low_dose_gives_a_small_edit_and_record_gives_none():
    rows = token_ids(8, 12)
    for action, size in (("clamp", 1), ("record", 0)):
        model = guarded("llama", action=action)
        with LayerTap(model) as tap:
            firings = firings_of(model, lambda model=model: model(input_ids=rows))
        assert any(f.fired for f in firings)
        assert bool(tap.edits().abs().max() > 0) is bool(size)


# ------------------------------------------------------------------------------------------------- rows and their gates


def fields_of(statistic):
    """Fields with which the gate divides the rows of these tests."""
    if statistic == "windowed":
        return {"threshold": 0.5}
    return {"threshold": 1.5, "drift": 0.4} if statistic == "cusum" else {"threshold": 0.55, "window": 6}


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


# ---------------------------------------------------------------------------------------------------- several at a time


@pytest.mark.parametrize("kind", [pytest.param("dynamic", marks=dynamic_caches_are_emptied), "static"])
def test_a_cache_that_is_reset_for_the_next_request_leaves_the_records_of_the_last(kind):
    model = guarded("llama").eval()
    requests = [token_ids(3, 10, seed=seed) for seed in range(3)]
    expected = [f for ids in requests for f in firings_of(model, lambda ids=ids: model(input_ids=ids))]
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=16)
    with record_firings(model) as firings:
        for ids in requests:
            cache.reset()
            forward(model, input_ids=ids, **with_cache(model, cache))
        before = list(firings)
    cache.reset()
    forward(model, input_ids=requests[0], **with_cache(model, cache))
    assert list(firings) == before
    assert [(f.call, f.row) for f in before] == [(call, row) for call in range(3) for row in range(3)]
    assert [(f.statistic, f.fired) for f in before] == [(f.statistic, f.fired) for f in expected]


@pytest.mark.slow
def test_eight_threads_on_one_model_do_not_mix():
    model = guarded("llama", threshold=0.5, min_tokens=8)
    jobs = [padded([token_ids(1, n + i, seed=10 * i + n)[0] for n in (3, 6)]) for i in range(8)]

    def run(batch):
        out = []
        with record_firings(model) as firings, torch.no_grad():
            out = [model.generate(**batch, **GREEDY, num_beams=1 + len(batch["input_ids"][0]) % 2) for _ in range(3)]
        return out, list(firings)

    expected = [run(batch) for batch in jobs]
    found, start = [None] * 8, threading.Barrier(8)

    def work(i):
        start.wait()
        found[i] = run(jobs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (tokens, records), (expected_tokens, expected_records) in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tokens, expected_tokens, strict=True))
        assert records == expected_records


def two_guards(layers, **fields):
    model = get_peft_model(base_model("llama"), planted_config(layer=layers[0], **fields))
    plant(model)
    model.add_adapter("second", planted_config(layer=layers[1], **fields | {"threshold": 0.2}))
    plant(model, "second", seed=1)
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    return model


def test_two_guardrails_at_one_layer_add_their_edits():
    ids, edits = token_ids(8, 12), {}
    model = two_guards((1, 1))
    for names in (["default"], ["second"], ["default", "second"]):
        model.base_model.set_adapter(names, inference_mode=True)
        with LayerTap(model) as tap:
            firings = firings_of(model, lambda: model(input_ids=ids))
        edits[tuple(names)] = tap.edits()
        assert {f.adapter for f in firings} == set(names)
    assert not torch.equal(edits["default",] != 0, edits["second",] != 0)
    torch.testing.assert_close(edits["default", "second"], edits["default",] + edits["second",], atol=1e-5, rtol=1e-5)


def test_two_guardrails_at_different_layers_each_have_their_own_gate():
    ids = token_ids(8, 12)
    model = two_guards((0, 2), gate_scope="prefix")
    out = []
    with LayerTap(model, 0) as low, LayerTap(model, 2) as high:
        both = firings_of(model, lambda: out.append(model.generate(input_ids=ids, **GREEDY)))
    content = ~torch.isin(out[0][:, :-1], torch.tensor([PAD, BOS, EOS]))
    for name, tap, threshold in (("default", low, 0.4), ("second", high, 0.2)):
        hot = part(model, name)[0](torch.cat(tap.before, dim=1)).gt(0).any(-1) & content
        own = [f for f in both if f.adapter == name]
        assert [f.evidence for f in own] == hot.sum(1).tolist()
        fired = (hot.cumsum(1) / content.cumsum(1) > threshold).cummax(1).values
        assert [f.fired for f in own] == fired[:, -1].tolist()
        assert torch.equal(tap.edits().abs().amax(-1) > 0, fired & hot)


def test_beams_keep_the_gates_of_two_guardrails():
    model = two_guards((0, 2), gate_scope="prefix", sticky=False, threshold=0.48)
    ids = token_ids(4, 4)
    out = model.generate(
        input_ids=ids,
        **GREEDY,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logits = forward(model, input_ids=out.sequences).logits[:, 3:-1]
    scores = logits.log_softmax(-1).gather(2, out.sequences[:, 4:, None])[..., 0].sum(1)
    torch.testing.assert_close(scores, out.sequences_scores, atol=1e-3, rtol=0)


# -------------------------------------------------------------------------------------------------- refused at the call


def test_a_cache_filled_while_the_guardrail_was_disabled_is_refused():
    for name in ("llama", "mamba"):
        model, ids = guarded(name), token_ids(1, 6)
        with model.disable_adapter():
            cache = cache_of(forward(model, input_ids=ids, use_cache=True))
        with pytest.raises(GuardrailNotReady, match="filled without the guardrail"):
            forward(model, input_ids=ids[:, :1], **with_cache(model, cache))
        forward(model, input_ids=ids)  # the model is not spoilt by it


def test_a_cache_of_which_the_guardrail_missed_a_part_is_refused():
    model, ids, cache = guarded("llama"), token_ids(1, 6), DynamicCache()
    forward(model, input_ids=ids, **with_cache(model, cache))
    with model.disable_adapter():
        forward(model, input_ids=ids[:, :1], **with_cache(model, cache))
    with pytest.raises(GuardrailNotReady, match="holds 7 tokens and guardrail 'default' \\(layer 1\\) has seen 6"):
        forward(model, input_ids=ids[:, :1], **with_cache(model, cache))


class Foreign:
    """A cache that is not transformers'."""

    def get_seq_length(self, *_):
        return 0


LEGACY = ((torch.zeros(1, 2, 3, 8),) * 2,) * 4
OF_AN_ENCODER = EncoderDecoderCache(DynamicCache(), DynamicCache())
UNKNOWN = {
    **{("legacy", name): (LEGACY, name) for name in ("past_key_values", "cache", "cache_params", "layer_past")},
    **{("foreign", name): (Foreign(), name) for name in ("past_key_values", "cache", "session", "kv_cache")},
    **{("encoder's", name): (OF_AN_ENCODER, name) for name in ("past_key_values", "cache")},
    ("XLM's of old", "cache"): ({"slen": torch.zeros(1)}, "cache"),
    ("recurrent", "state"): ([torch.zeros(1, 8)] * 5, "state"),
    ("XLNet's", "mems"): ([torch.zeros(3, 1, 8)], "mems"),
    ("one tensor", "past_state"): (torch.zeros(1, 8), "past_state"),
    ("a name", "cache"): ("session 1", "cache"),
    ("nested", "extra"): ({"a": [1, {"b": torch.zeros(1)}]}, "extra"),
    ("a cache in a list", "extra"): ([DynamicCache()], "extra"),
}


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize(("cache", "name"), UNKNOWN.values(), ids=[f"{kind}-{name}" for kind, name in UNKNOWN])
def test_what_may_carry_earlier_tokens_and_is_no_known_cache_is_refused_by_its_name(cache, name):
    """Under the names of every version, whatever the model itself would make of it."""
    model, ids = guarded("llama"), token_ids(1, 6)
    backbone = model.get_base_model().model
    for run in (model, backbone):
        with pytest.raises(GuardrailUnsupported, match=f"^{given_as(model, run, name)}: expected "):
            forward(run, input_ids=ids, **{name: cache})
    forward(model, input_ids=ids)


def given_as(model, run, name):
    """The name by which the backbone is given an argument of a call of `run`."""
    own = cache_name(model.get_base_model())
    return "cache" if run is model and (own, name) == ("cache", "past_key_values") else name


@pytest.mark.parametrize("second", [DynamicCache(), LEGACY], ids=["cache", "legacy"])
def test_a_second_cache_beside_the_first_is_refused(second):
    model = guarded("llama")
    with pytest.raises(GuardrailUnsupported, match=r"^memory: expected"):
        forward(model, input_ids=token_ids(1, 6), **with_cache(model, DynamicCache()), memory=second)


@pytest.mark.parametrize(
    "harmless", [{"use_cache": True}, {"sizes": [(1, 2)], "kind": "a"}, {"mask_of_images": torch.zeros(1)}], ids=str
)
def test_an_argument_that_can_carry_no_tokens_is_passed_on(harmless):
    model, ids = guarded("llama"), token_ids(1, 6)
    assert torch.equal(forward(model, input_ids=ids, **harmless).logits, forward(model, input_ids=ids).logits)


def test_without_a_guardrail_in_force_the_base_model_takes_what_it_takes():
    model, ids = guarded("llama"), token_ids(1, 6)
    bare = model.get_base_model()
    with model.disable_adapter():
        found = forward(bare.model, input_ids=ids, memory=LEGACY).last_hidden_state
    assert torch.equal(found, forward(base_model("llama").model, input_ids=ids).last_hidden_state)


def test_an_argument_by_position_that_has_no_name_is_refused():
    model = guarded("llama")
    with pytest.raises(NotImplementedError, match="by position"):
        model.get_base_model()(*[None] * 30)


@pytest.mark.parametrize(
    ("tokens", "inputs"),
    [
        (6, {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}),
        (6, {"cu_seq_lens_q": torch.tensor([0, 3, 6], dtype=torch.int32)}),
        (1, {"cu_seq_lens_q": torch.tensor([0, 1], dtype=torch.int32)}),
    ],
    ids=["position_ids", "cu_seq_lens", "one token"],
)
def test_packed_sequences_are_refused(tokens, inputs):
    model = guarded("llama")
    with pytest.raises(NotImplementedError, match="packed sequences"):
        forward(model, input_ids=token_ids(1, tokens), **inputs)
    with model.disable_adapter():
        pass
    forward(model, input_ids=token_ids(1, 6))


def test_continuous_batching_is_refused():
    with pytest.raises(NotImplementedError, match="continuous batching"):
        guarded("llama").generate_batch([[5, 6, 7]])


def test_a_mask_that_does_not_cover_the_tokens_is_refused():
    model, cache = guarded("llama"), DynamicCache()
    forward(model, input_ids=token_ids(2, 6), **with_cache(model, cache))
    with pytest.raises((GuardrailNotReady, RuntimeError), match=r"attention_mask: |size"):
        forward(model, input_ids=token_ids(2, 3), **with_cache(model, cache), attention_mask=torch.ones(2, 5))


def test_a_decoder_layer_called_outside_of_its_model_is_refused():
    model = guarded("llama")
    bare = model.get_base_model()
    hidden = torch.randn(1, 5, WIDTH)
    embeddings = bare.model.rotary_emb(hidden, torch.arange(5)[None])
    with pytest.raises(GuardrailNotReady, match="outside of its model"):
        bare.model.layers[1](hidden, position_embeddings=embeddings)
    forward(model, input_ids=token_ids(1, 5))
    with pytest.raises(GuardrailNotReady, match="outside of its model"):  # nothing of the last call is left over
        bare.model.layers[1](hidden, position_embeddings=embeddings)


def test_nothing_of_a_call_that_failed_is_left_over():
    model = guarded("llama")
    with pytest.raises(IndexError):
        forward(model, input_ids=torch.full((1, 4), 10**6))
    bare, hidden = model.get_base_model(), torch.randn(1, 5, WIDTH)
    embeddings = bare.model.rotary_emb(hidden, torch.arange(5)[None])
    with pytest.raises(GuardrailNotReady, match="outside of its model"):
        bare.model.layers[1](hidden, position_embeddings=embeddings)


def test_a_guardrail_without_weights_refuses_the_call():
    model = get_peft_model(base_model("llama"), planted_config())
    with pytest.raises(GuardrailNotReady, match="has no weights"):
        forward(model, input_ids=token_ids(1, 5))
    with pytest.raises(GuardrailNotReady, match="has no weights"):
        model.generate(input_ids=token_ids(1, 5), **GREEDY)
    with model.disable_adapter():
        forward(model, input_ids=token_ids(1, 5))


@pytest.mark.parametrize(
    "name", ["encoder.weight", "encoder.bias", "encoder.threshold", "decoder.weight", "decoder.clamp"]
)
def test_weights_that_are_not_finite_refuse_the_call_even_after_one_that_worked(name):
    model = guarded("llama")
    forward(model, input_ids=token_ids(1, 5))
    where, key = name.split(".")
    with torch.no_grad():
        getattr(part(model)[where == "decoder"], key).flatten()[0].fill_(torch.nan)
    with pytest.raises(GuardrailNotReady, match="not finite"):
        forward(model, input_ids=token_ids(1, 5))


def test_a_guardrail_without_threshold_refuses_the_call():
    model = get_peft_model(base_model("llama"), planted_config(threshold=None))
    plant(model)
    with pytest.raises(GuardrailNotReady, match="threshold=None"):
        forward(model, input_ids=token_ids(1, 5))


# -------------------------------------------------------------------------------------------- dtypes, copies, compiling


@pytest.mark.parametrize(
    "lower",
    [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(dtype=torch.float16)],
    ids=["to_bfloat16", "bfloat16", "half", "to_float16"],
)
def test_lowering_the_models_precision_leaves_the_guards_weights(lower):
    model = guarded("llama")
    before = [p.clone() for m in part(model) for p in m.parameters()]
    lower(model)
    after = [p for m in part(model) for p in m.parameters()]
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(after, before, strict=True))
    assert model.get_base_model().model.layers[0].mlp.up_proj.weight.dtype.itemsize == 2
    out = []
    with LayerTap(model) as tap:
        firings = firings_of(model, lambda: out.append(model.generate(input_ids=token_ids(6, 8), **GREEDY)))
    assert any(f.fired for f in firings)
    content = ~torch.isin(out[0][:, :-1], torch.tensor([PAD, BOS, EOS]))
    hot = part(model)[0](torch.cat(tap.before, dim=1)).gt(0).any(-1) & content
    assert [f.evidence for f in firings] == hot.sum(1).tolist()
    assert tap.after[0].dtype.itemsize == 2


def test_autocast_leaves_the_gates_decisions_in_full_precision():
    model = guarded("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), LayerTap(model) as tap:
        firings = firings_of(model, lambda: model(input_ids=token_ids(32, 20)))
    encoder = part(model)[0]
    residual = tap.before[0].float()
    expected = (residual @ encoder.weight.T + encoder.bias > encoder.threshold).any(-1)
    lowered = (residual.bfloat16() @ encoder.weight.T.bfloat16() > encoder.threshold.bfloat16()).any(-1)
    assert not torch.equal(lowered, expected)
    assert [f.evidence for f in firings] == expected.sum(1).tolist()


def saved_and_loaded(model, path):
    torch.save(model, path / "model.pt")
    return torch.load(path / "model.pt", weights_only=False)


@pytest.mark.parametrize(
    "copy_of", [lambda m, path: copy.deepcopy(m), saved_and_loaded], ids=["deepcopy", "torch_save"]
)
def test_copies_keep_guarding_with_their_own_state(copy_of, tmp_path):
    model, ids = guarded("llama"), token_ids(8, 10)
    expected = forward(model, input_ids=ids).logits
    twin = copy_of(model, tmp_path)
    assert torch.equal(forward(twin, input_ids=ids).logits, expected)
    assert torch.equal(twin.generate(input_ids=ids, **GREEDY), model.generate(input_ids=ids, **GREEDY))
    with record_firings(model) as firings:
        forward(twin, input_ids=ids)
    assert len(firings) == 0
    assert len(firings_of(twin, lambda: twin(input_ids=ids))) == 8
    part(twin)[1].clamp.data.fill_(-100.0)
    assert not torch.equal(forward(twin, input_ids=ids).logits, expected)
    assert torch.equal(forward(model, input_ids=ids).logits, expected)
    plain = forward(base_model("llama"), input_ids=ids).logits
    assert torch.equal(forward(twin.unload(), input_ids=ids).logits, plain)
    assert torch.equal(forward(model, input_ids=ids).logits, expected)


@pytest.fixture
def compiles():
    """Skips where torch cannot compile the model as it is, without a guardrail (an older torch than transformers' own
    compiled code asks for)."""
    torch._dynamo.reset()
    bare = torch.compile(base_model("llama"), fullgraph=True, backend="eager")
    try:
        forward(bare, **padded([token_ids(1, 5)[0]]))
    except torch._dynamo.exc.TorchDynamoException as error:
        pytest.skip(f"torch {torch.__version__} cannot compile the bare model: {type(error).__name__}")


@pytest.mark.slow
@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(
    ("scope", "statistic"),
    [
        ("sequence", "ratio"),
        ("prefix", "window"),
        ("sequence", "cusum"),
        ("prefix", "ratio_or_window"),
        ("prefix", "windowed"),
    ],
)
def test_compiled_in_one_graph_the_forward_pass_is_the_same(scope, statistic):
    model = guarded("llama", gate_scope=scope, statistic=statistic, window=6)
    batch = padded([token_ids(1, n, seed=n)[0] for n in (5, 9, 12)])
    expected = forward(model, **batch).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.get_base_model(), fullgraph=True, backend="eager")
    torch.testing.assert_close(forward(compiled, **batch).logits, expected)
    torch.testing.assert_close(forward(model, **batch).logits, expected)
    assert not torch.allclose(forward(base_model("llama"), **batch).logits, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("architecture", "scope"), [("llama", "sequence"), ("gemma3", "prefix")])
def test_compiled_static_cache_generation_is_the_same(architecture, scope):
    model = guarded(architecture, gate_scope=scope, threshold=0.5, min_tokens=8)
    batch = padded([token_ids(1, n, seed=n)[0] for n in (5, 9, 12)])
    expected = model.generate(**batch, **GREEDY)
    torch._dynamo.reset()
    settings = CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = model.generate(**batch, **GREEDY, cache_implementation="static", compile_config=settings)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert torch.equal(found, expected)
    assert not torch.equal(found, base_model(architecture).generate(**batch, **GREEDY))
    assert torch.equal(model.generate(**batch, **GREEDY), expected)


def test_other_special_tokens_count_from_the_next_call_on():
    model = guarded("llama")
    ids = token_ids(1, 12)
    with record_firings(model) as firings:
        forward(model, input_ids=ids)
        assign(model.peft_config["default"], special_ids=sorted(set(ids[0, :6].tolist())))
        forward(model, input_ids=ids)
    special = int(torch.isin(ids, ids[0, :6]).sum())
    assert [firing.tokens for firing in firings] == [12, 12 - special]


def test_special_ids_beyond_every_vocabulary_take_no_memory():
    for beyond in ([2**31 - 1], [PAD, 2**31 - 1]):
        model = guarded("llama", special_ids=beyond)
        forward(model, input_ids=token_ids(1, 5))
        assert all(len(table) <= 3 for layer in guard_layers(model) for table in layer.tables.made.values())
