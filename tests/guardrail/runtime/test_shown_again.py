"""What a mask hides while it is current, no later mask shows: text that no gate has judged would go by."""

import re
from contextlib import nullcontext

import pytest
import torch
import transformers
from packaging.version import Version
from step_cases import GREEDY
from transformers import DynamicCache, StaticCache
from zoo import base_model, guarded, padded, token_ids, with_cache

from sae_unlearn import GuardrailNotReady, record_firings
from sae_unlearn.guardrail.gate.decision import State
from sae_unlearn.guardrail.runtime.gate_history import GateHistory
from sae_unlearn.guardrail.runtime.shown import SHOWN_AGAIN


SEQ = 12
IDS = token_ids(4, SEQ)
CACHES = {"dynamic": lambda c: DynamicCache(config=c), "static": lambda c: StaticCache(config=c, max_cache_len=20)}


def seen_by(mask, start, kind):
    """A 2-D mask `[batch, keys]` of the passes so far in the form `kind`; the pass begins at `start`."""
    if kind == "2-D":
        return mask
    keys = mask.shape[1]
    causal = torch.arange(keys) <= torch.arange(start, keys)[:, None]
    seen = causal[None, None] & mask.bool()[:, None, None]
    return seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, -1e9)


def read(model, cuts, masks, kind="2-D", cache="dynamic", **more):
    """Logits of the last pass over `IDS`, cut at `cuts`, each pass with its mask; None: without one."""
    cache, start = CACHES[cache](model.config), 0
    for end, mask in zip(cuts, masks, strict=True):
        mask = None if mask is None else seen_by(mask, start, kind)
        if mask is not None and isinstance(cache, StaticCache) and mask.ndim == 4:
            mask = torch.nn.functional.pad(
                mask, (0, 20 - mask.shape[3]), value=False if mask.dtype == torch.bool else -1e9
            )
        if mask is not None and isinstance(cache, StaticCache) and model.config.model_type == "bloom":
            mask = torch.nn.functional.pad(mask, (0, 20 - mask.shape[1]))
        with torch.no_grad():
            logits = model(input_ids=IDS[:, start:end], attention_mask=mask, **with_cache(model, cache), **more).logits
        start = end
    return logits


def hiding(length, *places):
    mask = torch.ones(len(IDS), length, dtype=torch.long)
    mask[:, list(places)] = 0
    return mask


ONE_BY_ONE = list(range(1, SEQ + 1))
FORMS = {"2-D": "2-D", "bool": "bool", "additive": "additive"}


def raises_or_gives_nothing(run):
    try:
        logits = run()
    except (GuardrailNotReady, NotImplementedError):
        return
    assert logits.isnan().all()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_neox", "bloom"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("operators", [False, True])
def test_a_token_that_is_hidden_while_it_is_current_and_shown_later(name, cache, operators, request):
    if operators:
        request.getfixturevalue("by_operators")()
    masks = [hiding(n, n - 1) for n in ONE_BY_ONE]
    raises_or_gives_nothing(lambda: read(guarded(name, threshold=0.0), ONE_BY_ONE, masks, cache=cache))


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("later", ["step", "chunk"])
@pytest.mark.parametrize("hidden", [range(6), [0], [5], [2, 3]], ids=str)
def test_a_chunk_that_is_hidden_and_shown_later(kind, cache, later, hidden):
    end = 7 if later == "step" else SEQ
    masks = [hiding(6, *hidden), hiding(end)]
    raises_or_gives_nothing(lambda: read(guarded("llama"), [6, end], masks, kind, cache))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("end", [7, SEQ])
def test_to_leave_the_mask_out_shows_everything(cache, end):
    raises_or_gives_nothing(lambda: read(guarded("llama"), [6, end], [hiding(6, 1), None], cache=cache))


@pytest.mark.parametrize("kind", FORMS)
def test_as_many_tokens_are_not_the_same_tokens(kind):
    """One is hidden for each that is shown."""
    masks = [hiding(6, 1), hiding(SEQ, 2)]
    with pytest.raises(GuardrailNotReady, match=re.escape(SHOWN_AGAIN)):
        read(guarded("llama"), [6, SEQ], masks, kind)


@pytest.mark.parametrize("cache", CACHES)
def test_a_mask_as_long_as_the_chunk_is_of_the_chunk_to_nobody(cache):
    """transformers reads it as that of the first tokens, and hides the rest."""
    masks = [hiding(6, *range(6)), hiding(6)]
    raises_or_gives_nothing(lambda: read(guarded("llama"), [6, SEQ], masks, cache=cache))


@pytest.mark.parametrize("again", ["full_attention", "sliding_attention"])
def test_what_any_kind_of_layer_is_shown_later_was_shown_before(again):
    hidden, shown = seen_by(hiding(7, 2), 6, "additive"), seen_by(hiding(7), 6, "additive")

    def later(mask):
        model, cache = guarded("gemma2"), DynamicCache()
        masks = {kind: mask if kind == again else hidden for kind in ("full_attention", "sliding_attention")}
        with torch.no_grad():
            model(input_ids=IDS[:, :6], attention_mask=hiding(6, 2), **with_cache(model, cache))
            return model(input_ids=IDS[:, 6, None], attention_mask=masks, **with_cache(model, cache)).logits

    assert later(hidden.clone()).isfinite().all()
    raises_or_gives_nothing(lambda: later(shown))


@pytest.mark.parametrize("keys", [3, 4, 6, 8, 9])
def test_a_mask_that_ends_early_hides_what_is_beyond_its_end_in_a_static_cache(keys):
    """transformers fills it up with zeros."""
    model, cache = guarded("llama"), CACHES["static"](guarded("llama").config)
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=IDS[:, :6], attention_mask=hiding(6), **with_cache(model, cache))
        model(input_ids=IDS[:, 6:9], attention_mask=hiding(keys), **with_cache(model, cache))
        if keys < 9:
            with pytest.raises(GuardrailNotReady, match=re.escape(SHOWN_AGAIN)):
                model(input_ids=IDS[:, 9:], attention_mask=hiding(SEQ), **with_cache(model, cache))
    assert {firing.tokens for firing in firings} == {max(keys, 6)}


def test_a_mask_that_is_changed_in_its_place_is_looked_at():
    model, cache, mask = guarded("llama"), DynamicCache(), hiding(SEQ, 0, 1)
    with torch.no_grad():
        model(input_ids=IDS[:, :6], attention_mask=mask[:, :6], **with_cache(model, cache))
        for n in (6, 7):
            model(input_ids=IDS[:, n, None], attention_mask=mask[:, : n + 1], **with_cache(model, cache))
        mask.numpy()[2, 1] = 1
        with pytest.raises(GuardrailNotReady, match=re.escape(SHOWN_AGAIN)):
            model(input_ids=IDS[:, 8, None], attention_mask=mask[:, :9], **with_cache(model, cache))


def test_rows_that_change_places_take_what_was_hidden_with_them():
    model, mask = guarded("llama"), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    for rows, fault in (([0, 1], False), ([1, 0], True)):
        cache = DynamicCache()
        with torch.no_grad():
            model(input_ids=IDS[:2, :5], attention_mask=mask[:, :5], **with_cache(model, cache))
            model(input_ids=IDS[:2, 5, None], attention_mask=mask[:, :6], **with_cache(model, cache))
            cache.reorder_cache(torch.tensor(rows))
            if not fault:
                model(input_ids=IDS[:2, 6, None], attention_mask=mask, **with_cache(model, cache))
                continue
            with pytest.raises(GuardrailNotReady, match=re.escape(SHOWN_AGAIN)):
                model(input_ids=IDS[:2, 6, None], attention_mask=mask, **with_cache(model, cache))


@pytest.mark.parametrize("action", ["clamp", "refuse", "record"])
def test_every_action_is_stopped_or_says_that_it_cannot_judge(action):
    model = guarded("llama", threshold=0.5, action=action, refusal="w40", refusal_ids=[40, 96])
    masks, cache = [hiding(n, n - 1) for n in ONE_BY_ONE], DynamicCache()
    with record_firings(model) as firings:
        for n, mask in enumerate(masks):
            try:
                with torch.no_grad():
                    model(input_ids=IDS[:, n, None], attention_mask=mask, **with_cache(model, cache))
            except GuardrailNotReady:
                return
    assert action != "clamp"
    assert all(firing.fired and not firing.finite for firing in firings)


def test_only_the_row_whose_mask_shows_it_is_stopped(by_operators):
    by_operators()
    model, masks = guarded("llama"), [hiding(6), hiding(7)]
    masks[0][1, 2] = 0
    found = read(model, [6, 7], masks)
    assert found.isnan().flatten(1).all(1).tolist() == [False, True, False, False]
    assert not found[[0, 2, 3]].isnan().any()
    torch.testing.assert_close(found[[0, 2, 3]], read(model, [6, 7], [hiding(6), hiding(7)])[[0, 2, 3]])


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("operators", [False, True])
def test_hiding_more_or_the_same_is_no_fault(kind, cache, operators, request):
    if operators:
        request.getfixturevalue("by_operators")()
    cuts = [6, 9, 10, 11, SEQ]
    for later in ((0, 1, 4), (0, 1, 4, 7), (0, 1, 3, 4)):
        masks = [hiding(6, 0, 1, 4), *(hiding(n, *[p for p in later if p < n]) for n in cuts[1:])]
        assert read(guarded("llama"), cuts, masks, kind, cache).isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=["greedy", "beams", "drafts", "static"],
)
def test_padded_batches_go_on_turn_after_turn(side, settings):
    model = guarded("llama", threshold=0.4)
    batch = padded([ids[:n] for ids, n in zip(IDS, (3, 5, 12, 8), strict=True)], side)
    if "prompt_lookup_num_tokens" in settings:  # for one row, here without padding
        batch = {name: tensor[2, None] for name, tensor in batch.items()}
    rows = len(batch["input_ids"])
    cache = None if "num_beams" in settings or "cache_implementation" in settings else DynamicCache()
    first = model.generate(**batch, **GREEDY, **settings, **with_cache(model, cache))
    if cache is None:
        return
    more = torch.cat([first, token_ids(rows, 3, seed=9)], dim=1)
    mask = torch.nn.functional.pad(
        batch["attention_mask"], (0, more.shape[1] - batch["attention_mask"].shape[1]), value=1
    )
    # with drafts transformers (5.16 to 5.24) reads all tokens again after those in the cache: at 5.16 beside a mask
    # that is too short for them, at 5.19 and 5.24 without one, so that all are judged
    short = "prompt_lookup_num_tokens" in settings and Version(transformers.__version__) < Version("5.19")
    with pytest.raises(GuardrailNotReady, match="attention_mask: ") if short else nullcontext():
        again = model.generate(input_ids=more, attention_mask=mask, **with_cache(model, cache), **GREEDY, **settings)
        assert again.shape[1] > more.shape[1]


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next", "mamba"])
def test_recurrent_layers_read_a_token_alone_whatever_the_mask_says(name):
    """So it counts."""
    model, cache = guarded(name, threshold=0.0), DynamicCache(config=base_model(name).config)
    with record_firings(model) as firings, torch.no_grad():
        for n in range(3):
            mask = hiding(1, 0) if name == "mamba" else hiding(n + 1, n)
            model(input_ids=IDS[:, n, None], attention_mask=mask, **with_cache(model, cache))
        assert [firing.tokens for firing in firings] == [3] * len(IDS)


def test_what_was_hidden_is_noted_alike_by_all_ways(by_operators):
    noted = []
    for operators in (False, True):
        if operators:
            by_operators()
        model, cache = guarded("llama"), DynamicCache()
        with torch.no_grad():
            for start, end in ((0, 5), (5, 6), (6, 7), (7, 8)):
                mask = hiding(end, *[p for p in (0, 2, 6) if p < end])
                model(input_ids=IDS[:, start:end], attention_mask=mask, **with_cache(model, cache))
        history = next(layer for layer in cache.layers if isinstance(layer, GateHistory))
        noted.append(State.of(history.keys[:, 0]).kept.tolist())
    assert noted[0] == noted[1] == [[0, 1, 0, 1, 1, 1, 0, 1]] * len(IDS)


@pytest.mark.parametrize("fault", [False, True])
def test_compiled_code_finds_it_too(fault):
    torch._dynamo.reset()
    model = guarded("llama")
    bare = model.get_base_model()
    step, cache = (
        torch.compile(bare, backend="aot_eager", fullgraph=True),
        StaticCache(config=bare.config, max_cache_len=16),
    )
    with torch.no_grad():
        bare(input_ids=IDS[:, :6], attention_mask=hiding(6, 2), **with_cache(bare, cache))
        for n in (6, 7):
            mask = hiding(16, *([] if fault else [2]))
            found = step(input_ids=IDS[:, n, None], attention_mask=mask, **with_cache(step, cache)).logits
    assert bool(found.isnan().all()) is fault
    assert bool(found.isfinite().all()) is not fault
