"""Sampled answers: greedy ones are those of `generate`, sampled ones follow the softmax."""

from collections import Counter

import pytest
import torch
from labeled_words import label
from small_tokenizers import byte_level
from tiny_topic import tiny_tokenizer
from torch import nn
from transformers import GenerationConfig
from zoo import EOS, ZOO, base_model

from sae_unlearn.alignment.labeling.sampling import sample_continuations
from sae_unlearn.errors import AlignmentError


def sampled(model, rows, tokenizer=None, finished=lambda i, text: False, **options):
    options = {"samples": 4, "temperature": 1.0, "max_new_tokens": 5, "seeds": range(len(rows))} | options
    return sample_continuations(model, tokenizer or tiny_tokenizer(), rows, finished=finished, **options)


ROWS = [[1, 5, 6, 7, 8, 9], [1, 40], [1, 30, 31], [1, 12, 13, 14]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_greedy_is_what_generate_gives(name):
    """Through left padding, shared caches and rows that leave."""
    model, tokenizer = base_model(name), tiny_tokenizer()
    expected = []
    for row in ROWS:
        out = model.generate(torch.tensor([row]), max_new_tokens=5, do_sample=False, pad_token_id=0)
        written = out[0, len(row) :].tolist()
        written = written[: written.index(EOS)] if EOS in written else written  # the tokenizer's, which ends a sample
        expected.append(tokenizer.decode(written, skip_special_tokens=True))
    assert sampled(model, ROWS, samples=1, temperature=0) == [[text] for text in expected]
    short = sampled(model, ROWS, samples=2, temperature=0, finished=lambda i, text: len(text.split()) > i)
    assert short == [[" ".join(text.split()[: i + 1])] * 2 for i, text in enumerate(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "falcon_h1", "mamba"])
def test_samples_hang_on_their_own_seed_only(name):
    model = base_model(name)
    together = sampled(model, ROWS)
    for i, row in enumerate(ROWS):
        assert sampled(model, [row], seeds=[i]) == [together[i]]
    assert sampled(model, ROWS[::-1], seeds=[3, 2, 1, 0]) == together[::-1]
    assert len({text for texts in together for text in texts}) > 12
    ended = sampled(model, ROWS, finished=lambda i, text: text.endswith(("1", "3", "5", "7")))
    for texts, whole in zip(ended, together, strict=True):
        assert all(long.startswith(short) for short, long in zip(texts, whole, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_softmax(temperature):
    """Whatever the generation config says of top-k."""
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    model.generation_config = GenerationConfig(top_k=2, temperature=0.1, do_sample=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
        expected = (model(torch.tensor([ROWS[0]])).logits[0, -1] / temperature).softmax(dim=0)
    number = 20_000
    texts = sampled(model, [ROWS[0]], samples=number, temperature=temperature, max_new_tokens=1)[0]
    counts = Counter(texts)
    for token in expected.topk(8).indices:
        share, p = counts[tokenizer.decode([token])] / number, expected[token].item()
        assert abs(share - p) < 4.5 * (p * (1 - p) / number) ** 0.5  # standard errors


def test_samples_end_at_the_end_token():
    model = base_model("llama")
    first = model.generate(torch.tensor([ROWS[0]]), max_new_tokens=2, do_sample=False, pad_token_id=0)[0, -2:].tolist()
    model.generation_config.eos_token_id = [95, first[1]]
    text = sampled(model, ROWS[:1], samples=1, temperature=0)[0][0]
    assert text == tiny_tokenizer().decode(first)


def test_characters_of_several_tokens():
    """Half of a character is never judged, nor given back."""
    tokenizer = byte_level()
    seen = []

    class Says(nn.Module):
        """Writes a fixed text."""

        def __init__(self, text):
            super().__init__()
            self.embedding, self.ids = nn.Embedding(2, 2), tokenizer(text).input_ids

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, len(tokenizer))
            logits[:, -1, self.ids[input_ids.shape[1] - 2]] = 50.0
            return type("Out", (dict,), {"logits": logits})()

    options = {"samples": 1, "temperature": 0, "tokenizer": tokenizer}
    texts = sampled(Says("鳥取 x"), [[0, 1]], finished=lambda i, text: seen.append(text), max_new_tokens=5, **options)
    assert texts == [["鳥"]]
    assert seen[2:4] == ["鳥", "鳥"]


def test_logits_that_are_not_finite():
    model = base_model("llama")
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(AlignmentError, match=r"^logits: .*torch\.float32"):
        label(model)
