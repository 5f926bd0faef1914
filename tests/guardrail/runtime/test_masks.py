"""A mask hides from the gate only what it hides from the model."""

import pytest
import torch
from mask_cases import CAUSAL, DISTANCE, HEADS, IDS, OFF_DIAGONAL, PLACES, SEEN, SEQ, masks_of, records
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache, StaticCache
from zoo import guarded, padded, token_ids, with_cache

from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.gate.decision import State
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.gate_history import GateHistory
from sae_unlearn.guardrail.runtime.mask_reading import PassMasks
from sae_unlearn.guardrail.runtime.pass_mask import kept_tokens


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
    with pytest.raises(GuardrailUnsupported, match=match):
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
