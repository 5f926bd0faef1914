"""Corpora of a fit: of any kind, read as the fit goes on and once, and cut into rows."""

import pytest
import torch
from datasets import Dataset
from fitting import FORGET, RETAIN, TOKENIZER, as_token_rows, config_of, fit, same_fit, token_rows
from tiny_topic import topic_texts
from zoo import base_model, padded


def as_generator(texts):
    return (text for text in texts)


def as_dataset(texts):
    return Dataset.from_dict({"text": texts, "label": [0] * len(texts)})


def as_iterable_dataset(texts):
    return as_dataset(texts).to_iterable_dataset()


def as_mappings(texts):
    return [{"text": text} for text in texts]


def as_padded_batches(side):
    def batches(texts):
        rows = [torch.tensor(row) for row in token_rows(texts)]
        return [padded(rows[i : i + 7], side) for i in range(0, len(rows), 7)]

    return batches


KINDS = {
    "generator": as_generator,
    "dataset": as_dataset,
    "iterable_dataset": as_iterable_dataset,
    "mappings": as_mappings,
    "token_rows": as_token_rows,
    "left_padded": as_padded_batches("left"),
    "right_padded": as_padded_batches("right"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_corpus_gives_the_same_guardrail(kind, usual):
    same_fit(usual, fit(forget=KINDS[kind](FORGET), retain=KINDS[kind](RETAIN)))


def test_another_text_column_is_read():
    data = Dataset.from_dict({"body": FORGET}), Dataset.from_dict({"body": RETAIN})
    same_fit(fit(), fit(forget=data[0], retain=data[1], text_column="body"))


def test_empty_texts_are_passed_over(usual):
    holes = [*(" \n",), *FORGET[:3], "", *FORGET[3:]]
    same_fit(usual, fit(forget=holes))


@pytest.mark.slow
def test_corpora_are_read_as_the_fit_goes_on_and_once():
    model, read, at_first_pass = base_model("llama"), [], []
    model.model.layers[0].register_forward_pre_hook(lambda *_: at_first_pass.append(len(read)))

    def stream():
        for i, text in enumerate(topic_texts("forget", 400, seed=3)):
            read.append(i)
            yield text

    fit(model, forget=stream(), batch_size=1)
    assert read == list(range(400))
    assert at_first_pass[0] < 100


def test_long_documents_are_cut_into_rows_with_bos_each(usual):
    joined = [" ".join(FORGET[i : i + 4]) for i in range(0, 32, 4)]
    model = fit(forget=joined, max_length=16)
    counts = config_of(model).calibration["corpora"]["forget"]
    lengths = [len(TOKENIZER(text).input_ids) - 1 for text in joined]
    assert counts["documents"] == 8
    assert counts["rows"] == sum(-(-n // 15) for n in lengths)
    assert counts["tokens"] == sum(lengths) + counts["rows"]
