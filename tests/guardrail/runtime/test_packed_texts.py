"""No mask and no positions pack several texts into one row."""

import inspect

import pytest
import torch
from mask_cases import CAUSAL, IDS, PLACES, SEEN, SEQ, masks_of, records
from transformers import DynamicCache, Llama4TextConfig
from transformers.masking_utils import create_chunked_causal_mask
from zoo import PAD, VOCAB, WIDTH, ZOO, LayerTap, base_model, guarded, padded, token_ids, with_cache

from sae_unlearn import record_firings
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.runtime.call_context import INPUTS, note
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, hooks_of
from sae_unlearn.guardrail.runtime.packing import PACKING


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
    with pytest.raises(GuardrailUnsupported, match=f"packed sequences.*{match}"):
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
    with pytest.raises(GuardrailUnsupported, match=match):
        noted_by(model, row, position_ids=positions)
    if isinstance(positions, torch.Tensor) and positions.shape[:1] == (5,):
        with pytest.raises(GuardrailUnsupported, match="position_ids fall"):
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
    with pytest.raises(GuardrailUnsupported, match=name):
        noted_by(model, row[:, :length], **{name: torch.tensor([0, length])})


def test_a_call_without_tokens_of_a_known_shape_is_refused(packed, no_notes):
    with pytest.raises(GuardrailUnsupported, match="input_ids, inputs_embeds: "):
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
        with pytest.raises(GuardrailUnsupported, match="packed sequences"):
            records(chunked, attention_mask=given)


@pytest.mark.parametrize("full", [None, "causal"])
def test_texts_packed_in_the_mask_of_another_kind_of_attention_are_refused(full):
    own_text = (PLACES // 6)[:, None] == PLACES // 6
    blocks = CAUSAL.masked_fill(~own_text, -torch.inf)
    masks = {"full_attention": CAUSAL if full else None, "sliding_attention": blocks}
    with pytest.raises(GuardrailUnsupported, match="packed sequences"):
        guarded("gemma2")(input_ids=IDS, attention_mask=masks)
