"""Splitting over turns: the cache is kept, and what it holds is what one turn would have given."""

import random

import pytest
import torch
from lettered_words import lettered_tokenizer
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_parts, tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn import fit_guardrail, record_firings
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Fact, complete, recall
from sae_unlearn.evaluation.audit.attacks import splitting_attack
from sae_unlearn.evaluation.audit.attacks.splitting import converse, harmless_first, in_parts


FACTS = [Fact(text, ("w3",), f"s{i}") for i, text in enumerate(topic_texts("forget", 4, words=7))]


@pytest.fixture(scope="module")
def guarded():
    model, tokenizer, sae = tiny_parts()
    return fit_guardrail(model, tokenizer, sae, topic_texts("forget", 40), topic_texts("retain", 80), progress=False)


def test_parts_joined_are_the_prompt():
    prompt = "one two three four five six seven"
    for turns in (1, 2, 3, 7, 20):
        parts = in_parts(prompt, turns)
        assert "".join(parts) == prompt
        assert len(parts) == min(turns, 7)
        assert max(len(p.split()) for p in parts) - min(len(p.split()) for p in parts) <= 1
    assert in_parts("Question: a b c d?\nAnswer:", 2) == ["Question: a", " b c d?\nAnswer:"]
    assert "".join(in_parts("Question: a b c d?\nAnswer:", 3)) == "Question: a b c d?\nAnswer:"
    assert in_parts("Question: a b c d?\nAnswer:", 3)[-1].endswith("\nAnswer:")
    with pytest.raises(UnlearnError, match="turns=0"):
        in_parts(prompt, 0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_without_a_template_the_turns_are_one_text_to_a_bare_model(name):
    model, tokenizer = base_model(name), tiny_tokenizer()
    plain = recall(model, tokenizer, FACTS, max_new_tokens=4)
    for point in splitting_attack(model, tokenizer, FACTS, (1, 2, 3), ["in parts"], max_new_tokens=4):
        assert [one.completion for one in point.found.found] == [one.completion for one in plain]
        assert [one.fact for one in point.found.found] == FACTS
        assert point.found.fired == {}


def test_a_turn_that_adds_no_token_is_nothing():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    assert in_parts("w3  w4", 3) == ["w3", " ", " w4"]
    assert (
        converse(model, tokenizer, ["w3", " ", " w4"], 3) == complete(model, tokenizer, ["w3 w4"], max_new_tokens=3)[0]
    )


def test_a_lora_is_the_same_in_several_turns():
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model, tokenizer = get_peft_model(base_model("llama"), lora).eval(), tiny_tokenizer()
    [point] = splitting_attack(model, tokenizer, FACTS, (3,), ["in parts"], max_new_tokens=4)
    assert [one.completion for one in point.found.found] == [
        one.completion for one in recall(model, tokenizer, FACTS, max_new_tokens=4)
    ]


def test_tokens_of_a_turn_are_read_once(guarded):
    """The second turn goes on from the cache: each token is computed once, and never again."""
    seen = []
    backbone = guarded.get_base_model().model
    handle = backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    converse(guarded, tiny_tokenizer(), in_parts("w3 w4 w5 w6 w7 w8", 3), 2)
    handle.remove()
    assert seen == [3, 2, 2, 1]  # BOS and two words, two words, two words, and the first new token


def test_the_gate_remembers_earlier_turns(guarded):
    """Its statistic at the end is that of the whole prompt: nothing is forgotten between turns."""
    tokenizer = tiny_tokenizer()
    for fact in FACTS:
        ids = torch.tensor([tokenizer(fact.prompt)["input_ids"]])
        with record_firings(guarded) as whole, torch.no_grad():
            guarded(input_ids=ids)
        with record_firings(guarded) as split:
            converse(guarded, tokenizer, in_parts(fact.prompt, 3), 1)
        assert (split[-1].tokens, split[-1].evidence) == (whole[-1].tokens, whole[-1].evidence)
    [point] = splitting_attack(guarded, tokenizer, FACTS, (2,), ["in parts"], max_new_tokens=2)
    assert point.found.fired["default"].shape == (len(FACTS),)


def test_harmless_turns_come_before_the_question():
    model, tokenizer, filler = base_model("llama"), tiny_tokenizer(), topic_texts("retain", 3)
    for turns in (1, 2):
        [point] = splitting_attack(model, tokenizer, FACTS, (turns,), ["harmless first"], filler, 4, seed=3)
        talks = [harmless_first(f.prompt, turns, filler, random.Random(f"3 {i}")) for i, f in enumerate(FACTS)]
        assert all(len(talk) == turns and talk[-1] == fact.prompt for talk, fact in zip(talks, FACTS, strict=True))
        assert all(len(part.split()) == 40 for talk in talks for part in talk[:-1])
        expected = complete(model, tokenizer, ["".join(talk) for talk in talks], max_new_tokens=4)
        assert [one.completion for one in point.found.found] == expected
        assert point.variant == "harmless first"
    with pytest.raises(UnlearnError, match="ways='by post'"):
        splitting_attack(model, tokenizer, FACTS, ways=["by post"])


def test_with_a_template_every_part_is_a_turn_with_its_reply():
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w70 ' if m['role'] == 'user' else '' }}{{ m['content'] }}"
        "{{ ' w71 ' if m['role'] == 'user' else ' w72 ' }}{% endfor %}"
    )
    text = converse(model, tokenizer, ["w3 w4", " w5 w6"], 3, reply_tokens=2, chat_template=True)
    first = complete(model, tokenizer, ["w70 w3 w4 w71"], max_new_tokens=2)[0]
    assert text == complete(model, tokenizer, [f"w70 w3 w4 w71 {first} w72 w70 w5 w6 w71"], max_new_tokens=3)[0]


def test_a_template_that_rewrites_what_was_said_is_read_anew():
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    tokenizer.chat_template = "{{ 'w60 ' * messages|length }}{% for m in messages %}{{ m['content'] }} {% endfor %}"
    first = complete(model, tokenizer, ["w60 w3 w4"], max_new_tokens=2)[0]
    text = converse(model, tokenizer, ["w3 w4", "w5"], 3, reply_tokens=2, chat_template=True)
    assert text == complete(model, tokenizer, [f"w60 w60 w60 w3 w4 {first} w5"], max_new_tokens=3)[0]


def test_a_template_that_is_not_there_is_said():
    with pytest.raises(UnlearnError, match=r"^chat_template=True: "):
        splitting_attack(base_model("llama"), tiny_tokenizer(), FACTS[:1], chat_template=True)
