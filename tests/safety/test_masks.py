"""A mask hides from the gate only what it hides from the model, and no mask packs several texts into one."""

import inspect

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionMaskInterface, DynamicCache, Llama4TextConfig, StaticCache
from transformers.masking_utils import create_chunked_causal_mask, create_masks_for_generate, sdpa_mask
from zoo import PAD, VOCAB, WIDTH, ZOO, LayerTap, base_model, guarded, padded, token_ids, with_cache

from sae_unlearn import record_firings
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.gate import State
from sae_unlearn.guardrail.runtime.call_context import INPUTS, ForwardInputs, note, noted
from sae_unlearn.guardrail.runtime.gate_history import GateHistory
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, hooks_of
from sae_unlearn.guardrail.runtime.mask_reading import PassMasks
from sae_unlearn.guardrail.runtime.packing import PACKING
from sae_unlearn.guardrail.runtime.pass_mask import kept_tokens


SEQ, HEADS = 12, 4
IDS = token_ids(6, SEQ)
SEEN = torch.ones(SEQ, SEQ).tril().bool()[None, None].expand(len(IDS), 1, SEQ, SEQ)
CAUSAL = torch.zeros(SEEN.shape).masked_fill(~SEEN, -torch.inf)
PLACES = torch.arange(SEQ)
OFF_DIAGONAL = SEEN & ~torch.eye(SEQ, dtype=torch.bool) | (PLACES == 0)
DISTANCE = (PLACES[:, None] - PLACES).abs()


def records(model, ids=IDS, **inputs):
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=ids, **inputs)
    return [(f.row, f.statistic, f.fired, f.evidence, f.tokens) for f in firings]


# -------------------------------------------------------------------------------------- what is padding, and what not


IN_OTHER_WORDS = {
    "less a constant": CAUSAL - 2,
    "finite": CAUSAL.clamp(min=-1e9) - 2,
    "each row less a constant of its own": CAUSAL - 7.0 * PLACES[:, None],
    "more a constant": CAUSAL + 5,
    "in half precision": CAUSAL.clamp(min=torch.finfo(torch.float16).min).half(),
    "a bias by distance": CAUSAL - DISTANCE,
    "the largest bias on the farthest": CAUSAL + 3 * DISTANCE,
    "one head does not see the diagonal": torch.cat([OFF_DIAGONAL, SEEN.expand(-1, HEADS - 1, -1, -1)], dim=1),
    "one for all rows of the batch": SEEN[:1],
    "one for all tokens": SEEN[:, :, -1:],
    "bidirectional": torch.ones_like(SEEN),
}


@pytest.mark.parametrize("mask", IN_OTHER_WORDS.values(), ids=IN_OTHER_WORDS)
def test_what_somebody_sees_counts_however_the_mask_says_it(mask):
    model = guarded("llama", threshold=0.4, action="record")
    model.get_base_model().set_attn_implementation("eager" if mask.dtype == torch.float16 else "sdpa")
    found = records(model, attention_mask=mask)
    assert {tokens for *_, tokens in found} == {SEQ}


@pytest.mark.parametrize("full", [None, CAUSAL - 2], ids=["none", "causal"])
def test_what_some_layers_do_not_see_counts_if_those_of_full_attention_do(full):
    near = CAUSAL.masked_fill((DISTANCE > 7) | (PLACES < 3), -1e9).clamp(min=-1e9)
    masks = {"sliding_attention": near, "full_attention": full}
    positions = 2 * PLACES[None].expand(len(IDS), -1) if full is not None else None
    found = records(guarded("gemma2"), attention_mask=masks, position_ids=positions)
    assert {tokens for *_, tokens in found} == {SEQ}


def test_what_full_attention_does_not_see_counts_if_other_layers_do():
    hidden = CAUSAL.masked_fill(PLACES < 3, -1e9).clamp(min=-1e9)
    found = records(guarded("gemma2"), attention_mask={"full_attention": hidden, "sliding_attention": CAUSAL})
    assert {tokens for *_, tokens in found} == {SEQ}
    found = records(guarded("gemma2"), attention_mask={"full_attention": hidden, "sliding_attention": hidden})
    assert {tokens for *_, tokens in found} == {SEQ - 3}


def test_layers_without_full_attention_tell_padding_by_their_own_masks():
    batch = padded([ids[:n] for ids, n in zip(IDS, (3, 5, 12, 8, 9, 11), strict=True)])
    text = batch["attention_mask"].bool()
    both, none = SEEN & text[:, None, None], torch.zeros_like(SEEN)
    whole = torch.ones_like(text)
    for chunked, sliding, expected in (
        (both, both, text),
        (none, both, text),
        (None, both, whole),  # seen by the layers that have no mask
        (batch["attention_mask"], none, text),
        (batch["attention_mask"], torch.zeros_like(text), text),
        (batch["attention_mask"], whole, whole),
    ):
        masks = {"chunked_attention": chunked, "sliding_attention": sliding}
        inputs = ForwardInputs(
            None,
            masks,
            None,
            0,
            False,
            None,
            None,
            [],
            masks=PassMasks(
                [] if chunked is None else [chunked, sliding],
                [(mask, None) for mask in (chunked, sliding) if mask is not None and mask.ndim == 4],
            ),
        )
        assert torch.equal(kept_tokens(inputs, *IDS.shape, IDS.device), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low", [-1e9, -torch.inf, "lowest"])
def test_padding_is_what_nobody_sees_whatever_number_hides_it(low, dtype, side):
    low = torch.finfo(dtype).min if low == "lowest" else low
    if low == -1e9 and dtype == torch.float16:
        low = -6e4  # as low as it goes, nearly
    batch = padded([ids[:n] for ids, n in zip(IDS, (3, 5, 12, 8, 9, 11), strict=True)], side)
    mask = torch.zeros(SEEN.shape, dtype=dtype)
    mask.masked_fill_(~(SEEN & batch["attention_mask"].bool()[:, None, None]), low)
    masks = PassMasks([mask], [(mask, None)], [], True, dtype)
    inputs = ForwardInputs(batch["input_ids"], mask, None, 0, False, None, None, [], masks=masks)
    assert torch.equal(kept_tokens(inputs, *IDS.shape, IDS.device), batch["attention_mask"].bool())


def masks_of(model, ids, mask, cache, positions):
    """What `generate` makes of a 2-D mask for a model that is compiled."""
    return create_masks_for_generate(
        config=model.config,
        inputs_embeds=model.get_input_embeddings()(ids),
        attention_mask=mask,
        position_ids=positions,
        **with_cache(model, cache),
    )


def read_in_passes(name, kind, side, cache_kind, four_dimensional):
    """Records of a padded batch that is read in two passes, a third over its end and two decoding steps."""
    model = guarded(name, threshold=0.4)
    model.get_base_model().set_attn_implementation(kind)
    batch = padded([token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15)], side)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 8), value=1)
    ids = torch.cat([batch["input_ids"], token_ids(4, 8, seed=99)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    if cache_kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=24)
    found, kinds, done = [], set(), 0
    for end in (15,) if cache_kind is None else (9, 15, 21, 22, 23):
        inputs = {"position_ids": positions[:, done:end], "attention_mask": mask[:, :end]}
        inputs |= {"use_cache": False} if cache_kind is None else with_cache(model, cache)
        if four_dimensional:
            inputs["attention_mask"] = masks_of(
                model, ids[:, done:end], mask[:, :end], None if cache_kind is None else cache, inputs["position_ids"]
            )
            given = inputs["attention_mask"]
            kinds |= {m.ndim for m in (given.values() if isinstance(given, dict) else [given]) if m is not None}
        found += records(model, ids[:, done:end], **inputs)
        done = end
    assert 4 in kinds or not four_dimensional
    return found


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "dynamic", "static"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_neox"])
def test_masks_that_transformers_makes_hide_the_padding_and_nothing_else(name, kind, side, cache):
    expected = read_in_passes(name, kind, side, cache, four_dimensional=False)
    assert len({statistic for _, statistic, *_ in expected}) >= 3
    assert read_in_passes(name, kind, side, cache, four_dimensional=True) == expected


def test_a_token_that_sees_nothing_is_padding_in_a_pass_of_its_own():
    model, blank = guarded("llama", counting="content"), torch.finfo(torch.float32).min
    mask = torch.tensor([0.0, blank, -5.0])[:, None, None, None]
    for each in (mask, mask > blank):
        assert [tokens for *_, tokens in records(model, IDS[:3, :1], attention_mask=each)] == [1, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("past", [0, 4], ids=["prompt", "step"])
def test_compiled_code_reads_such_a_mask_as_eager_code_does(past):
    torch._dynamo.reset()
    seq, counts, model = (SEQ, 1)[past > 0], [], guarded("llama", threshold=0.4)
    base, batch = model.get_base_model(), padded([ids[:n] for ids, n in zip(IDS, (3, 5, 12, 8, 9, 11), strict=True)])
    seen = torch.nn.functional.pad(SEEN & batch["attention_mask"].bool()[:, None, None], (0, 4))
    rows = seen[:, :, past : past + seq]
    mask = torch.zeros(rows.shape).masked_fill(~rows, torch.finfo(torch.float32).min) - 0.5
    for run in (base, torch.compile(base, backend="aot_eager", fullgraph=True)):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.no_grad():
            if past:
                base(IDS[:, :past], attention_mask=batch["attention_mask"][:, :past], **with_cache(model, cache))
            run(batch["input_ids"][:, past : past + seq], attention_mask=mask, **with_cache(model, cache))
        history = next(layer for layer in cache.layers if isinstance(layer, GateHistory))
        counts.append(torch.stack(State.of(history.last())[:2], dim=-1).tolist())
    assert counts[0] == counts[1]
    kept = batch["attention_mask"][:, : past + seq].sum(1)
    assert [tokens for _, tokens in counts[0]] == kept.tolist()


# ------------------------------------------------------------------------------------------------------- packed texts


@pytest.fixture(scope="module")
def packed():
    """A guarded model, a row of three quiet texts of six tokens and one that fires when it is alone, and that one."""
    model = guarded("llama", threshold=0.4)
    pool = token_ids(600, 6, seed=5)
    with LayerTap(model) as tap, torch.no_grad():
        model(input_ids=pool)
    hot = (guard_layers(model)[0].guardrail("default").encoder(tap.before[0]) != 0).any(-1).float().mean(1)
    quiet, loud = pool[hot < 0.1][:3], pool[hot > 0.8][:1]
    return model, torch.cat([quiet.reshape(1, -1), loud], dim=1), loud


DOCUMENT = torch.repeat_interleave(torch.arange(4), 6)[None]
BLOCKS = (DOCUMENT[0] == DOCUMENT[0][:, None]).tril()[None, None]
RESTARTING = torch.arange(6).repeat(4)[None]
PACKED = {
    "a block mask": ({"attention_mask": BLOCKS, "position_ids": RESTARTING}, "does not attend to"),
    "a block mask alone": ({"attention_mask": BLOCKS}, "does not attend to"),
    "an additive block mask": (
        {"attention_mask": torch.zeros(BLOCKS.shape).masked_fill(~BLOCKS, -1e9)},
        "does not attend",
    ),
    "a block mask for some layers": ({"attention_mask": {"full_attention": BLOCKS}}, "does not attend to"),
    "numbers of documents": ({"attention_mask": DOCUMENT + 1, "position_ids": RESTARTING}, "other than 0 and 1"),
    "numbers beside usual positions": (
        {"attention_mask": DOCUMENT + 1, "position_ids": torch.arange(24)[None]},
        "other than 0 and 1",
    ),
    "positions beside a mask": ({"attention_mask": torch.ones(1, 24), "position_ids": RESTARTING}, "position_ids fall"),
    "positions": ({"position_ids": RESTARTING}, "position_ids do not rise by one"),
    "gaps in the positions": ({"position_ids": torch.arange(24)[None] + 5 * DOCUMENT}, "position_ids do not rise"),
}


@pytest.mark.parametrize(("inputs", "match"), PACKED.values(), ids=PACKED)
def test_a_text_that_fires_alone_is_not_hidden_between_quiet_ones(packed, inputs, match):
    model, row, loud = packed
    assert [fired for _, _, fired, *_ in records(model, loud)] == [True]
    with pytest.raises(NotImplementedError, match=f"packed sequences.*{match}"):
        records(model, row, **inputs)
    assert [fired for _, _, fired, *_ in records(model, loud)] == [True]


TEXTS, THREE = RESTARTING[None], RESTARTING[None].expand(3, -1, -1)
IN_AXES = {
    "four axes": (torch.cat([TEXTS, THREE]), "position_ids do not rise by one"),
    "five axes": (torch.cat([TEXTS, THREE, TEXTS]), "position_ids do not rise by one"),
    "gaps": (torch.cat([torch.arange(24)[None, None] + 5 * DOCUMENT, THREE]), "position_ids do not rise by one"),
    "one axis": (TEXTS, "expected"),
    "two axes": (TEXTS.expand(2, -1, -1), "expected"),
    "axes at the end": (RESTARTING[..., None].expand(-1, -1, 3), "expected"),
    "four dimensions": (TEXTS[None], "expected"),
    "none": (torch.tensor(3), "expected"),
    "a row": (RESTARTING[0], "position_ids do not rise by one"),
    "another length": (RESTARTING[:, :12], "expected"),
    "another batch": (RESTARTING.expand(3, -1), "expected"),
    "a list": (RESTARTING.tolist(), "expected"),
}


def noted_by(model, row, **inputs):
    """As in a call with such inputs, without the model, which may not take them."""
    hooks = hooks_of(model.get_base_model().model, BackboneHooks)
    hooks.before(model.get_base_model().model, (), {"input_ids": row, **inputs})


@pytest.fixture
def no_notes():
    yield
    note(INPUTS, None)


@pytest.mark.parametrize(("positions", "match"), IN_AXES.values(), ids=IN_AXES)
def test_positions_of_every_shape_are_judged_or_refused(packed, positions, match, no_notes):
    model, row, _ = packed
    with pytest.raises(NotImplementedError, match=match):
        noted_by(model, row, position_ids=positions)
    if isinstance(positions, torch.Tensor) and positions.shape[:1] == (5,):
        with pytest.raises(NotImplementedError, match="position_ids fall"):
            noted_by(model, row, position_ids=positions, attention_mask=torch.ones(1, 24))


@pytest.mark.parametrize("axes", [3, 4, 5])
def test_positions_of_images_in_one_text_go_through(packed, axes, no_notes):
    """Those of the rotary embedding fall within an image; the text's own rise."""
    model, row, _ = packed
    image = torch.tensor([0, 1, 2, 2, 3, 3, 2, 3, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    positions = image[None, None].expand(axes, 1, -1).clone()
    if axes > 3:
        positions[0] = torch.arange(24)
    noted_by(model, row, position_ids=positions)
    noted_by(model, row, position_ids=positions, attention_mask=torch.ones(1, 24))


@pytest.mark.parametrize("length", [1, 24])
@pytest.mark.parametrize("name", PACKING)
def test_what_gives_the_places_of_texts_is_refused(packed, name, length, no_notes):
    model, row, _ = packed
    with pytest.raises(NotImplementedError, match=name):
        noted_by(model, row[:, :length], **{name: torch.tensor([0, length])})


def test_a_call_without_tokens_of_a_known_shape_is_refused(packed, no_notes):
    with pytest.raises(NotImplementedError, match="input_ids, inputs_embeds: "):
        noted_by(packed[0], None, position_ids=RESTARTING)


def test_packed_texts_go_through_while_the_guardrail_is_off(packed):
    model, row, _ = packed
    inputs = {"input_ids": row, "position_ids": RESTARTING}
    with model.disable_adapter(), torch.no_grad():
        found = model(**inputs).logits
    torch.testing.assert_close(found, base_model("llama")(**inputs).logits, atol=0, rtol=0)


def test_numbers_in_a_2d_mask_without_positions_are_one_text_to_model_and_gate(packed):
    model, row, _ = packed
    assert records(model, row, attention_mask=DOCUMENT + 1) == records(model, row, attention_mask=torch.ones(1, 24))


REFUSED = {
    "nobody sees itself": (OFF_DIAGONAL, "does not attend to itself"),
    "texts in turns": (SEEN & (DISTANCE % 2 == 0), "does not attend to"),
    "padding that sees itself": ((SEEN & (PLACES > 2)) | torch.eye(SEQ, dtype=torch.bool), "does not attend to"),
    "padding that sees all": ((SEEN & (PLACES > 2)) | (PLACES < 3)[:, None], "does not attend to"),
    "low numbers": (CAUSAL.clamp(min=-2e4) - 1e4, "low numbers"),
    "whole numbers": (SEEN.long(), "attention_mask: .*int64"),
    "three dimensions": (SEEN[:, 0], "attention_mask: "),
    "another batch": (SEEN[:2], "attention_mask: "),
    "another length": (SEEN[..., :5], "attention_mask: "),
    "a block mask of flex attention": (
        create_block_mask(lambda b, h, q, k: q >= k, None, None, SEQ, SEQ, device="cpu"),
        "attention_mask: .*BlockMask",
    ),
}


@pytest.mark.parametrize(("mask", "match"), REFUSED.values(), ids=REFUSED)
def test_a_mask_that_does_not_tell_padding_from_text_is_refused(mask, match):
    with pytest.raises(NotImplementedError, match=match):
        records(guarded("llama"), attention_mask=mask)


@pytest.mark.parametrize("filled", [0, 1, -1, 11])
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_positions_of_padding_may_be_anything(side, filled):
    model, mask = guarded("llama"), torch.ones_like(IDS)
    mask[1:, {"left": slice(4), "right": slice(8, None), "middle": slice(3, 7)}[side]] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, filled)
    four_dimensional = SEEN & mask.bool()[:, None, None]
    expected = [SEQ] + [SEQ - 4] * 5
    for each in (mask, four_dimensional):
        found = records(model, attention_mask=each, position_ids=positions)
        assert [tokens for *_, tokens in found] == expected


def kept_of(model, mask, ids=IDS):
    """Tokens that the gate would keep, by the hooks, without the model: attention may not take such a mask."""
    backbone = model.get_base_model().model
    try:
        hooks_of(backbone, BackboneHooks).before(backbone, (), {"input_ids": ids, "attention_mask": mask})
        return kept_tokens(noted(INPUTS), *ids.shape, ids.device)
    finally:
        note(INPUTS, None)


LOWEST = {dtype: torch.finfo(dtype).min for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
SHOWN = (0.0, 3e4, 3e5, 1e11, 1e30, -999.0, -1e4, -6e4, -4e8, -6e8, -1e9, -1e17, -1e30, "lowest")


@pytest.mark.parametrize("hidden", [-torch.inf, "lowest", "below"])
@pytest.mark.parametrize("kind", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", LOWEST)
def test_what_a_number_shows_counts_or_is_refused_at_the_edges_of_a_dtype(dtype, weights, kind, hidden):
    model = guarded("llama").to(weights)
    model.get_base_model().config._attn_implementation = kind
    for shown in SHOWN:
        value = torch.tensor(LOWEST[dtype] if shown == "lowest" else shown, dtype=torch.float64).to(dtype)
        low = {"lowest": LOWEST[dtype], "below": float(value) - 5000}.get(hidden, hidden)
        mask = torch.full(SEEN.shape, low, dtype=torch.float64).to(dtype).masked_fill(SEEN, float(value))
        if not value.isfinite() or not bool((mask.double() < float(value) - 2000).any()):
            continue  # the dtype has no such number
        if value < -1000:
            with pytest.raises(NotImplementedError, match="low numbers"):
                kept_of(model, mask)
        else:
            assert kept_of(model, mask).all(), shown


def test_a_number_that_double_precision_still_tells_apart_is_refused_and_a_large_one_counts():
    """By the model itself: the logits follow the text."""
    model = guarded("llama", threshold=0.4, action="record").double()
    base, other = model.get_base_model(), IDS.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    for low in (-1e9, 1e11):
        mask = torch.full(SEEN.shape, -torch.inf, dtype=torch.float64).masked_fill(SEEN, low)
        with model.disable_adapter(), torch.no_grad():
            plain, moved, usual = (
                base(ids, attention_mask=m).logits for ids, m in ((IDS, mask), (other, mask), (IDS, None))
            )
        assert (plain - moved)[:, -1].abs().max() > 1e-3
        torch.testing.assert_close(plain, usual, atol=1e-3, rtol=1e-3)
        if low < 0:
            with pytest.raises(NotImplementedError, match="low numbers"):
                records(model, attention_mask=mask)
        else:
            assert {tokens for *_, tokens in records(model, attention_mask=mask)} == {SEQ}


@pytest.mark.parametrize(
    ("kind", "weights", "dtype", "low", "kept"),
    [
        ("eager", torch.float64, torch.float64, -1e9, True),
        ("eager", torch.float64, torch.float32, -1e9, True),  # added in double precision
        ("eager", torch.float64, torch.float64, "lowest", False),
        ("eager", torch.float32, torch.float32, -1e9, False),
        ("eager", torch.float32, torch.float16, "lowest", True),
        ("eager", torch.float16, torch.float16, "lowest", False),
        ("sdpa", torch.float16, torch.float16, "lowest", True),  # kernels add in float32
        ("sdpa", torch.float16, torch.float16, -torch.inf, False),
        ("sdpa", torch.bfloat16, torch.bfloat16, -1e4, True),
        ("sdpa", torch.bfloat16, torch.bfloat16, "lowest", False),
    ],
)
def test_a_step_whose_mask_is_one_low_number_counts_unless_rounding_loses_the_scores(kind, weights, dtype, low, kept):
    model = guarded("llama").to(weights)
    model.get_base_model().config._attn_implementation = kind
    mask = torch.full((len(IDS), 1, 1, 5), LOWEST[dtype] if low == "lowest" else low, dtype=dtype)
    assert bool(kept_of(model, mask, IDS[:, :1]).all()) == bool(kept_of(model, mask, IDS[:, :1]).any()) == kept


def test_a_mask_is_read_as_the_implementation_reads_it():
    model = guarded("llama")
    config, text, numbers = model.get_base_model().config, torch.ones_like(IDS), CAUSAL
    text[:, :3] = 0
    AttentionMaskInterface.register("like_sdpa", sdpa_mask)
    AttentionMaskInterface.register("of_others", lambda *args, **kwargs: None)
    table = {
        "sdpa": (True, True),
        "eager": (False, True),
        "flex_attention": (False, True),
        "like_sdpa": (True, True),
        "flash_attention_2": (False, False),
        "of_others": (False, False),
        "without a mask function": (False, False),
    }
    for name, taken in table.items():
        config._attn_implementation_internal = name
        assert config._attn_implementation == name
        for mask, takes in zip((SEEN, numbers), taken, strict=True):
            if takes:
                assert kept_of(model, mask).all()
            else:
                with pytest.raises(NotImplementedError, match=f"attention_mask: .*{name}"):
                    kept_of(model, mask)
        follows = name != "without a mask function"  # which transformers gives no mask, so that it sees the padding
        assert torch.equal(kept_of(model, text), text.bool() if follows else torch.ones_like(text).bool())
    with pytest.raises(NotImplementedError, match=r"attention_mask\['other'\]: expected masks of the model's layers"):
        guarded("gemma2")(input_ids=IDS, attention_mask={"full_attention": CAUSAL, "other": CAUSAL})


CHUNK = 5


@pytest.fixture(scope="module")
def chunked():
    """A guarded model with layers of chunked and of full attention."""
    fields = {"attention_chunk_size": CHUNK, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 2}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 4, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB, "pad_token_id": PAD}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ZOO, "llama4", lambda: Llama4TextConfig(**fields, **sizes, **heads))
        model = guarded("llama4", threshold=0.4)
    assert set(model.config.layer_types) == {"chunked_attention", "full_attention"}
    return model


def masks_by(model, text, cache=None, done=0):
    """The masks that transformers makes of a 2-D one."""
    positions = (text.cumsum(1) - 1).clamp(min=0)[:, done:]
    made = masks_of(model, IDS[:, done : text.shape[1]], text, cache, positions)
    return {"attention_mask": made, "position_ids": positions}


@pytest.mark.skipif(
    "block_sequence_ids" not in inspect.signature(create_chunked_causal_mask).parameters,
    reason="create_masks_for_generate of transformers 5.16 fails for chunked attention",
)
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cut", [None, 3, 5, 7])
def test_the_chunks_of_an_attention_are_no_texts(chunked, side, kind, cut):
    chunked.get_base_model().set_attn_implementation(kind)
    batch = padded([ids[:n] for ids, n in zip(IDS, (3, 5, 12, 8, 9, 11), strict=True)], side)
    text, ids, done = batch["attention_mask"], batch["input_ids"], 0
    expected = text.sum(1).tolist()
    cache = None if cut is None else DynamicCache(config=chunked.config)
    with record_firings(chunked) as firings, torch.no_grad():
        for end in (SEQ,) if cut is None else (cut, SEQ):
            given = masks_by(chunked, text[:, :end], cache, done)
            chunked(input_ids=ids[:, done:end], **given, **({} if cache is None else with_cache(chunked, cache)))
            done = end
    assert [firing.tokens for firing in firings] == expected


@pytest.mark.parametrize("place", range(1, SEQ))
@pytest.mark.parametrize("full", ["none", "causal", "packed"])
def test_texts_packed_in_the_mask_of_chunked_attention_are_refused(chunked, place, full):
    """At the border of a chunk alone they are what one text is to such layers."""
    chunked.get_base_model().set_attn_implementation("sdpa")
    same_chunk = PLACES[:, None] // CHUNK == PLACES // CHUNK
    own_text = (place <= PLACES)[:, None] == (place <= PLACES)
    masks = {"none": None, "causal": SEEN, "packed": SEEN & own_text}
    given = {"full_attention": masks[full], "chunked_attention": SEEN & same_chunk & own_text}
    if full != "packed" and place % CHUNK == 0:
        assert {tokens for *_, tokens in records(chunked, attention_mask=given)} == {SEQ}
    else:
        with pytest.raises(NotImplementedError, match="packed sequences"):
            records(chunked, attention_mask=given)


def test_a_bool_mask_that_eager_attention_would_add_is_refused():
    model = guarded("llama")
    model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(NotImplementedError, match="attention_mask: expected numbers to add with eager"):
        model(input_ids=IDS, attention_mask=SEEN)
    masks = {"full_attention": SEEN, "sliding_attention": SEEN}
    model = guarded("gemma2")
    model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(NotImplementedError, match=r"attention_mask\['full_attention'\]: expected numbers"):
        model(input_ids=IDS, attention_mask=masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
@pytest.mark.parametrize("length", [1, SEQ])
def test_a_2d_mask_in_a_dict_which_the_kernel_would_add_is_refused(dtype, length):
    masks = dict.fromkeys(("full_attention", "sliding_attention"), torch.zeros(len(IDS), length, dtype=dtype))
    with pytest.raises(NotImplementedError, match=r"attention_mask\['full_attention'\]: expected a 4-D mask"):
        guarded("gemma2")(input_ids=IDS[:, :length], attention_mask=masks)


@pytest.mark.parametrize("full", [None, "causal"])
def test_texts_packed_in_the_mask_of_another_kind_of_attention_are_refused(full):
    own_text = (PLACES // 6)[:, None] == PLACES // 6
    blocks = CAUSAL.masked_fill(~own_text, -torch.inf)
    masks = {"full_attention": CAUSAL if full else None, "sliding_attention": blocks}
    with pytest.raises(NotImplementedError, match="packed sequences"):
        guarded("gemma2")(input_ids=IDS, attention_mask=masks)
