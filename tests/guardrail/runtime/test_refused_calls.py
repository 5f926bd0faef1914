"""Calls that a guardrail cannot judge are refused, and nothing of them is left over."""

import re

import pytest
import torch
from forward_calls import GREEDY, forward, part
from peft import get_peft_model
from tokenizers import Tokenizer, models
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedTokenizerFast
from zoo import WIDTH, base_model, guarded, plant, planted_config, token_ids, with_cache

from sae_unlearn import GuardrailNotReady
from sae_unlearn.backbone.call_arguments import cache_name, cache_of
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.runtime.call_context import OUTSIDE


def test_a_cache_filled_while_the_guardrail_was_disabled_is_refused():
    for name in ("llama", "mamba"):
        model, ids = guarded(name), token_ids(1, 6)
        with model.disable_adapter():
            cache = cache_of(forward(model, input_ids=ids, use_cache=True))
        with pytest.raises(GuardrailNotReady, match=r"cache .*'default' \(layer 1\)"):
            forward(model, input_ids=ids[:, :1], **with_cache(model, cache))
        forward(model, input_ids=ids)  # the model is not spoilt by it


def test_a_cache_of_which_the_guardrail_missed_a_part_is_refused():
    model, ids, cache = guarded("llama"), token_ids(1, 6), DynamicCache()
    forward(model, input_ids=ids, **with_cache(model, cache))
    with model.disable_adapter():
        forward(model, input_ids=ids[:, :1], **with_cache(model, cache))
    with pytest.raises(GuardrailNotReady, match=r"cache .* 7 .*'default' \(layer 1\).* 6:"):
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


TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize(
    "harmless",
    [
        {"use_cache": True},
        {"sizes": [(1, 2)], "kind": "a"},
        {"mask_of_images": torch.zeros(1)},
        {"tokenizer": TOKENIZER},
    ],
    ids=lambda harmless: next(iter(harmless)),
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
    with pytest.raises(GuardrailUnsupported, match=r"^args=30 values: .* 8 "):
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
def test_packed_sequences_with_a_cache_are_refused(tokens, inputs):
    model = guarded("llama")
    with pytest.raises(GuardrailUnsupported, match="packed sequences"):
        forward(model, input_ids=token_ids(1, tokens), **inputs)
    with model.disable_adapter():
        pass
    forward(model, input_ids=token_ids(1, 6))


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
    with pytest.raises(GuardrailNotReady, match=re.escape(OUTSIDE)):
        bare.model.layers[1](hidden, position_embeddings=embeddings)
    forward(model, input_ids=token_ids(1, 5))
    with pytest.raises(GuardrailNotReady, match=re.escape(OUTSIDE)):  # nothing of the last call is left over
        bare.model.layers[1](hidden, position_embeddings=embeddings)


def test_nothing_of_a_call_that_failed_is_left_over():
    model = guarded("llama")
    with pytest.raises(IndexError):
        forward(model, input_ids=torch.full((1, 4), 10**6))
    bare, hidden = model.get_base_model(), torch.randn(1, 5, WIDTH)
    embeddings = bare.model.rotary_emb(hidden, torch.arange(5)[None])
    with pytest.raises(GuardrailNotReady, match=re.escape(OUTSIDE)):
        bare.model.layers[1](hidden, position_embeddings=embeddings)


def test_a_guardrail_without_weights_refuses_the_call():
    model = get_peft_model(base_model("llama"), planted_config())
    with pytest.raises(GuardrailNotReady, match=r"'default' .*\(encoder\.weight, .*decoder\.clamp\)"):
        forward(model, input_ids=token_ids(1, 5))
    with pytest.raises(GuardrailNotReady, match=r"'default' .*\(encoder\.weight, .*decoder\.clamp\)"):
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
