"""action="refuse": a row that fired is answered with the owner's message, whatever way it is generated."""

import threading

import pytest
import torch
from refusing import IDS, MESSAGE, fired_rows, generate, refusing, told
from tiny_topic import tiny_tokenizer
from transformers import TextIteratorStreamer
from zoo import EOS, base_model, padded, token_ids, with_cache

from sae_unlearn import GuardrailNotReady, record_firings
from sae_unlearn.backbone.call_arguments import cache_of


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "falcon_h1", "mamba"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_that_fires_gets_the_message_and_then_the_end_and_others_go_on(name, use_cache):
    model = refusing(name)
    fired = fired_rows(model)
    assert fired.any()
    assert not fired.all()
    plain = generate(base_model(name), use_cache=use_cache)
    found = generate(model, use_cache=use_cache)
    for row in range(len(IDS)):
        if fired[row]:
            assert told(found[row]) == MESSAGE
            assert found[row, len(MESSAGE) :].eq(0).all()
    late = torch.tensor([MESSAGE[0] in row.tolist() for row in found])
    going_on = ~fired & ~late
    assert going_on.any()
    assert torch.equal(found[going_on], plain[going_on])


def test_a_row_s_answer_does_not_depend_on_its_batch_or_its_padding():
    model = refusing()
    rows = [row[: 6 + i % 5] for i, row in enumerate(IDS)]
    batch = padded(rows)
    together = generate(model, batch["input_ids"], attention_mask=batch["attention_mask"])
    for row, answer in zip(rows, together, strict=True):
        assert told(generate(model, row[None])[0]) == told(answer)


def test_a_row_that_fires_while_it_is_generated_gets_the_message_from_there():
    model = refusing(threshold=0.55)
    with record_firings(model) as firings:
        found = generate(model, max_new_tokens=24)
    late = [f for f in firings if f.fired and f.at_token > IDS.shape[1]]
    assert late, "some row should fire late"
    for firing in late:
        row = told(found[firing.row])
        assert row[-len(MESSAGE) :] == MESSAGE
        assert len(row) == firing.at_token - IDS.shape[1] + len(MESSAGE)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 1.5, "top_k": 5},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
        {"num_return_sequences": 2, "do_sample": True},
        {"repetition_penalty": 1.8},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 4},
    ],
    ids=lambda s: "-".join(s),
)
def test_every_way_of_generating_tells_the_message(settings):
    model = refusing()
    fired = fired_rows(model)
    repeats = settings.get("num_return_sequences", 1)
    found = generate(model, **settings)
    for row in fired.repeat_interleave(repeats).nonzero().flatten():
        assert told(found[row]) == MESSAGE


@pytest.mark.slow
def test_drafts_of_an_assistant_do_not_get_past_it():
    model = refusing()
    fired = fired_rows(model)
    for row in range(len(IDS)):
        found = generate(model, IDS[row : row + 1], assistant_model=base_model("llama"))[0]
        if fired[row]:
            assert told(found) == MESSAGE
        else:
            assert told(found) == told(generate(model, IDS[row : row + 1])[0])


def test_where_the_end_is_forbidden_the_message_begins_again():
    model = refusing()
    found = generate(model, min_new_tokens=8)
    for row in fired_rows(model).nonzero().flatten():
        assert found[row].tolist() == MESSAGE[:-1] * 2


FORBIDDING = {
    "the end": ({"min_new_tokens": 8}, MESSAGE[:-1] * 2),
    "a token of it": ({"bad_words_ids": [[41]]}, [40] * 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.4, 20.0])
@pytest.mark.parametrize(("settings", "expected"), FORBIDDING.values(), ids=FORBIDDING)
def test_sampling_at_any_temperature_meets_a_forbidden_token(settings, expected, temperature, dtype):
    model = refusing().to(dtype)
    fired = fired_rows(model)
    found = generate(model, do_sample=True, temperature=temperature, **settings)
    for row in fired.nonzero().flatten():
        assert found[row].tolist() == expected


def test_a_token_that_may_not_come_again_ends_no_batch():
    model = refusing()
    found = generate(model, do_sample=True, temperature=0.3, no_repeat_ngram_size=1)
    assert found.shape[0] == len(IDS)
    for row in fired_rows(model).nonzero().flatten():
        assert found[row, :2].tolist() == MESSAGE[:2]


def test_guidance_by_a_second_pass_tells_the_message():
    model = refusing()
    found = generate(model, do_sample=True, guidance_scale=1.5)
    for row in fired_rows(model).nonzero().flatten():
        assert told(found[row]) == MESSAGE


@pytest.mark.parametrize("num_beams", [2, 3, 4])
def test_beams_end_no_sooner_than_they_may(num_beams):
    model = refusing()
    found = generate(model, num_beams=num_beams, min_new_tokens=8)
    for row in fired_rows(model).nonzero().flatten():
        assert EOS not in found[row, :8].tolist()


def test_a_second_turn_is_refused_anew():
    model = refusing()
    row = fired_rows(model).nonzero()[0]
    first = model.generate(input_ids=IDS[row], max_new_tokens=8, eos_token_id=EOS, return_dict_in_generate=True)
    again = torch.cat([first.sequences, token_ids(1, 5, seed=3)], dim=1)
    second = model.generate(
        input_ids=again, **with_cache(model, cache_of(first)), max_new_tokens=8, eos_token_id=EOS, pad_token_id=0
    )
    assert told(second[0, again.shape[1] :]) == MESSAGE


def test_a_message_that_goes_on_from_the_prompt_is_still_ended():
    model = refusing(message=[40, 40, 40, EOS])
    for end in ([40], [40, 40], [40, 40, 40]):
        ids = IDS.clone()
        ids[:, -len(end) :] = torch.tensor(end)
        fired, found = fired_rows(model, ids), generate(model, ids)
        for row in fired.nonzero().flatten():
            assert set(told(found[row])) <= {40, EOS}
            assert EOS in found[row].tolist()


def test_embeddings_in_place_of_tokens_are_refused_too():
    model = refusing(special_ids=None)
    embedded = model.get_input_embeddings()(IDS)
    with record_firings(model) as firings:
        found = model.generate(
            inputs_embeds=embedded, max_new_tokens=8, do_sample=False, eos_token_id=EOS, pad_token_id=0
        )
    early = [f.row for f in firings if f.fired and f.at_token == IDS.shape[1]]
    assert early
    assert all(told(found[row]) == MESSAGE for row in early)


# ------------------------------------------------------------------------------------------------ a plain forward pass


def test_a_plain_forward_pass_gives_the_message_at_its_end_and_clamped_logits_before():
    model, clamping = refusing(), refusing(action="clamp")
    fired = fired_rows(model)
    with torch.no_grad():
        found, clamped, plain = (m(input_ids=IDS).logits for m in (model, clamping, base_model("llama")))
    assert found[fired, -1].argmax(-1).eq(MESSAGE[0]).all()
    assert found.isfinite().all()
    assert torch.equal(found[:, :-1], clamped[:, :-1])
    assert torch.equal(found[~fired], plain[~fired])


def test_a_tuple_holds_the_message_and_what_is_before_the_head_is_clamped():
    model, clamping = refusing(), refusing(action="clamp")
    with torch.no_grad():
        found, clamped = (m(input_ids=IDS, return_dict=False, output_hidden_states=True) for m in (model, clamping))
        assert torch.equal(found[0], model(input_ids=IDS).logits)
        assert torch.equal(found[-1][-1], clamped[-1][-1])
    assert found[0][fired_rows(model), -1].argmax(-1).eq(MESSAGE[0]).all()


def test_a_message_beyond_the_vocabulary_stops_the_call():
    model = refusing(message=[500, EOS], threshold=0.4)
    with pytest.raises(GuardrailNotReady, match=r"refusal_ids.*got 500"):
        generate(model)


# ------------------------------------------------------------------------------------------------------------ streaming


@pytest.mark.slow
@pytest.mark.parametrize("action", ["refuse", "clamp"])
def test_what_is_streamed_is_what_is_generated(action):
    model, tokenizer = refusing(action=action), tiny_tokenizer()
    fired = fired_rows(model)
    for row in range(len(IDS)):
        ids = IDS[row : row + 1]
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
        settings = {"input_ids": ids, "streamer": streamer, "max_new_tokens": 8, "do_sample": False}
        settings |= {"eos_token_id": EOS, "pad_token_id": 0}
        work = threading.Thread(target=model.generate, kwargs=settings)
        work.start()
        text = "".join(streamer)
        work.join()
        assert text == tokenizer.decode(generate(model, ids)[0], skip_special_tokens=True)
        if action == "refuse" and fired[row]:
            assert text == "w40 w41 w40 w42"
