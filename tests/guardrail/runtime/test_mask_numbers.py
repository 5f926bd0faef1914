"""Numbers in a mask are read as the attention's implementation reads them."""

import pytest
import torch
from mask_cases import CAUSAL, IDS, SEEN, SEQ, kept_of, records
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from zoo import guarded

from sae_unlearn.errors import GuardrailUnsupported


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
            with pytest.raises(GuardrailUnsupported, match="low numbers"):
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
            with pytest.raises(GuardrailUnsupported, match="low numbers"):
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
                with pytest.raises(GuardrailUnsupported, match=f"attention_mask: .*{name}"):
                    kept_of(model, mask)
        follows = name != "without a mask function"  # which transformers gives no mask, so that it sees the padding
        assert torch.equal(kept_of(model, text), text.bool() if follows else torch.ones_like(text).bool())
    with pytest.raises(
        GuardrailUnsupported, match=r"^attention_mask\['other'\]: .*'full_attention', 'sliding_attention'"
    ):
        guarded("gemma2")(input_ids=IDS, attention_mask={"full_attention": CAUSAL, "other": CAUSAL})


def test_a_bool_mask_that_eager_attention_would_add_is_refused():
    model = guarded("llama")
    model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(GuardrailUnsupported, match=r"^attention_mask: .*eager.*bool"):
        model(input_ids=IDS, attention_mask=SEEN)
    masks = {"full_attention": SEEN, "sliding_attention": SEEN}
    model = guarded("gemma2")
    model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(GuardrailUnsupported, match=r"^attention_mask\['full_attention'\]: .*eager.*bool"):
        model(input_ids=IDS, attention_mask=masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
@pytest.mark.parametrize("length", [1, SEQ])
def test_a_2d_mask_in_a_dict_which_the_kernel_would_add_is_refused(dtype, length):
    masks = dict.fromkeys(("full_attention", "sliding_attention"), torch.zeros(len(IDS), length, dtype=dtype))
    with pytest.raises(GuardrailUnsupported, match=r"^attention_mask\['full_attention'\]: .*4-D.*2-D"):
        guarded("gemma2")(input_ids=IDS[:, :length], attention_mask=masks)
