"""Fitting in the tokenizer's chat template, when asked, and judging message by message."""

import pytest
from fitting import FORGET, RETAIN, config_of, fit, token_rows
from tiny_topic import tiny_tokenizer
from zoo import BOS

from sae_unlearn import GuardrailError


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} w5 {% for m in messages %}{{ m.content }}{% endfor %} <unk> w6"
    return tokenizer


def test_the_chat_template_is_used_when_asked(usual):
    tokenizer = chat_tokenizer()
    model = fit(tokenizer=tokenizer, chat_template=True)
    by_hand = [
        [{"input_ids": [BOS, 5, *row[1:], tokenizer.unk_token_id, 6]} for row in token_rows(texts)]
        for texts in (FORGET, RETAIN)
    ]
    counts = config_of(model).calibration
    assert counts["corpora"]["forget"]["tokens"] == sum(len(row["input_ids"]) for row in by_hand[0])
    assert counts["chat_template"] is True
    assert tokenizer.unk_token_id in config_of(model).tokens.special_ids
    assert tokenizer.unk_token_id not in config_of(usual).tokens.special_ids


def test_a_fit_on_plain_text_warns_where_there_is_a_chat_template(usual):
    tokenizer = chat_tokenizer()
    assert any("chat_template=True" in text for text in config_of(fit(tokenizer=tokenizer)).calibration["warnings"])
    for model in (usual, fit(tokenizer=tokenizer, chat_template=True)):
        assert not any("chat_template" in text for text in config_of(model).calibration["warnings"])


def test_a_fit_in_the_chat_template_judges_message_by_message():
    tokenizer = chat_tokenizer()
    boundary = (tokenizer.unk_token_id,)  # the BOS at the beginning is none
    for given, expected in (
        ({"chat_template": True}, boundary),
        ({"chat_template": True, "sticky": False}, None),
        ({"chat_template": True, "preset": "faithful"}, None),
        ({}, None),
    ):
        config = config_of(fit(tokenizer=tokenizer, **given))
        assert config.tokens.boundary_ids == expected
        assert not any("not mark messages by special tokens" in text for text in config.calibration["warnings"])
    words = tiny_tokenizer()
    words.chat_template = "w5 {% for m in messages %}{{ m.content }}{% endfor %} w6"
    for tokens, warned in ((words, True), (tokenizer, False)):
        found = config_of(fit(tokenizer=tokens, chat_template=True))
        assert any("not mark messages by special" in text for text in found.calibration["warnings"]) is warned
        assert (found.tokens.boundary_ids is None) is warned


def test_a_chat_template_that_is_not_there_is_refused():
    with pytest.raises(GuardrailError, match=r"^chat_template=True: "):
        fit(chat_template=True)
