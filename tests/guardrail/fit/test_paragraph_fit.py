"""A fit that judges paragraphs: their weight and threshold, on synthetic scores and on a model."""

import pytest
import torch
from blank_line_tokenizer import paragraph_tokenizer
from fitting import FORGET, RETAIN, SAE, TOKENIZER, config_of, fit, same_fit
from test_windowed_gate import synthetic
from tiny_topic import topic_texts
from zoo import base_model

from sae_unlearn import GuardrailError, attach_guardrail, record_firings
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.guardrail.fit.cross_calibration import OutOfFold, calibrate, peak_quantile
from sae_unlearn.guardrail.fit.encoded_rows import EncodedRows, last_content
from sae_unlearn.guardrail.fit.paragraphs import COUNTS, documents, highest, paragraphs_of, values_of
from sae_unlearn.guardrail.fit.windowed_fit import row_values
from sae_unlearn.guardrail.gate.offline import content_tokens, message_ends
from sae_unlearn.guardrail.gate.windowed import WindowedParameters, mean_part


BLANK = paragraph_tokenizer()
PARAGRAPHS = {"statistic": "windowed", "num_gate_features": 12, "paragraphs": True, "tokenizer": BLANK}


def ends_of(rows):
    return [torch.arange(len(row)) == len(row) - 1 for row in rows]


def scores(topic=100, other=400, paragraphs=True):
    rows = synthetic(0, topic, 1.0, (30, 90)), synthetic(1, other, -0.5, (30, 90))
    return OutOfFold(*rows, *(map(ends_of, rows) if paragraphs else ()))


def test_rows_are_cut_where_paragraphs_end():
    rows = [torch.arange(5.0), torch.arange(3.0)]
    ends = [torch.tensor([False, True, False, False, True]), torch.tensor([True, True, True])]
    assert [part.tolist() for part in paragraphs_of(rows, ends)] == [[0, 1], [2, 3, 4], [0], [1], [2]]


def test_a_document_has_its_number_of_paragraphs_from_each_one_on():
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0, 5.0, 6.0])]
    rows, ends = documents(parts, 2)
    assert [row.tolist() for row in rows] == [[1, 2, 3], [3, 4, 5, 6], [4, 5, 6, 1, 2]]
    assert [end.tolist() for end in ends] == [[0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0, 1]]
    assert len(documents(parts * 400, 16)[0]) <= 512


def test_the_highest_paragraph_of_documents():
    values = torch.tensor([1.0, 5.0, 2.0, 0.0])
    assert highest(values, 1).tolist() == [1, 5, 2, 0]
    assert highest(values, 2).tolist() == [5, 5, 2, 1]
    assert highest(values, 16).tolist() == [5, 5, 5, 5]
    parameters = WindowedParameters(-0.3, 0.05, 1.7, 0.4375, 0.21)
    some = synthetic(3, 4, 0.0, (3, 20))
    expected = [float(mean_part(row.sum(), torch.tensor(float(len(row))), parameters)) for row in some]
    torch.testing.assert_close(values_of(some, parameters), torch.tensor(expected))


def test_without_paragraphs_nothing_changes_and_with_them_only_their_weight():
    plain, made = calibrate(scores(paragraphs=False), 0.025, 0.0), calibrate(scores(), 0.025, 0.0)
    assert plain.parameters.message_weight == 1
    assert 0 < made.parameters.message_weight < 1
    assert made.parameters._replace(message_weight=1.0) == plain.parameters
    assert made.threshold == plain.threshold


def test_the_weight_is_that_of_the_highest_paragraph_of_documents():
    given, alpha = scores(), 0.025
    rows = calibrate(scores(paragraphs=False), alpha, 0.0).parameters
    values = values_of(given.paragraphs, rows).double()
    counted = [float(highest(values, count).quantile(1 - alpha)) for count in COUNTS]
    assert counted == sorted(counted)
    tail = peak_quantile(values.sort(descending=True).values, len(values), 16, alpha, 20)
    assert tail > counted[0]
    assert calibrate(given, alpha, 0.0).parameters.message_weight == pytest.approx(1 / max(1.0, tail, *counted))


def test_false_alarms_are_flat_in_the_number_of_paragraphs_and_a_short_topic_is_caught_behind_text():
    alpha, plain, made = 0.025, *(calibrate(scores(400, 1500, some), 0.025, 0.0) for some in (False, True))
    fresh = synthetic(7, 3000, -0.5, (30, 90))
    for count in COUNTS:
        rows, ends = zip(
            *[
                (torch.cat(fresh[i : i + count]), torch.cat(ends_of(fresh[i : i + count])))
                for i in range(0, 3000 - count, count)
            ],
            strict=True,
        )
        share = (row_values(rows, ends, made.parameters) > made.threshold).float().mean()
        assert share < 2 * alpha
    topic = synthetic(8, 300, 0.35, (40, 41), spread=0.0)  # a faint topic, whose sums do not add up
    behind = [torch.cat([*fresh[8 * i : 8 * i + 8], row]) for i, row in enumerate(topic)]
    ends = [torch.cat([*ends_of(fresh[8 * i : 8 * i + 8]), *ends_of([row])]) for i, row in enumerate(topic)]
    caught = [
        float((row_values(behind, e, m.parameters) > m.threshold).float().mean())
        for e, m in ((None, plain), (ends, made))
    ]
    assert caught[1] > caught[0] + 0.1


def test_ends_are_at_the_last_content_token_up_to_each_boundary():
    content = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0]]).bool()
    ends = torch.tensor([[1, 0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0, 0]]).bool()
    #                        tokens 1, 2 | 3: boundary | 4: ends itself | 5
    assert last_content(content, ends).tolist() == [False, True, True, True, True, True]


def texts(side, seed):
    """Texts of two paragraphs each."""
    some = topic_texts(side, 64, seed=seed)
    return [f"{a}\n\n{b}" for a, b in zip(some[::2], some[1::2], strict=True)]


@pytest.fixture(scope="module")
def fitted():
    return fit(**PARAGRAPHS, forget=texts("forget", 1), retain=texts("retain", 2) + texts("retain", 3))


def test_the_gate_on_the_model_computes_what_was_calibrated(fitted):
    config, rows = config_of(fitted), [BLANK(text).input_ids for text in texts("forget", 1)[:6]]
    encoded = EncodedRows(SAE)
    for batch in residual_batches(base_model("llama"), rows, config.layer, 2):
        encoded.add(batch, content_tokens(batch, config), message_ends(batch, config))
    corpus = encoded.corpus([*range(6)], config.tokens.outlier_norm)
    assert [int(end.sum()) for end in corpus.ends] == [2] * 6
    table = torch.zeros(SAE.d_sae)
    table[[*config.feature_ids, *config.gate_feature_ids]] = torch.tensor(config.feature_evidence)
    of_rows = corpus.tokens.split(corpus.tokens.scores(table, config.statistic_kwargs.bias))
    expected = row_values(of_rows, corpus.ends, config.statistic_kwargs)
    found = []
    for row in rows:
        with record_firings(fitted) as firings, torch.no_grad():
            fitted(input_ids=torch.tensor([row]))
        found.append(firings[0].statistic)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-6, atol=1e-6)


def test_boundaries_weight_and_figures_are_stored_and_said(fitted, tmp_path):
    config = config_of(fitted)
    (blank,) = config.tokens.boundary_ids
    assert BLANK("w2\n\nw3").input_ids[-2] == blank
    assert blank not in config.tokens.special_ids
    assert 0 < config.statistic_kwargs.message_weight <= 1
    figures = config.calibration["windowed"]
    assert figures["by_paragraphs"].keys() == {str(count) for count in COUNTS}
    assert any("in paragraphs" in text for text in config.calibration["words"])
    fitted.save_pretrained(tmp_path)
    same_fit(fitted, attach_guardrail(base_model("llama"), tmp_path))


def test_a_chat_has_messages_and_paragraphs():
    tokenizer = paragraph_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} w5 {% for m in messages %}{{ m.content }}{% endfor %} <unk> w6"
    config = config_of(fit(**PARAGRAPHS | {"tokenizer": tokenizer}, chat_template=True))
    blank = tokenizer("w2\n\nw3").input_ids[-2]
    assert config.tokens.boundary_ids == tuple(sorted((blank, tokenizer.unk_token_id)))
    assert config.tokens.paragraph_ids == [blank]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"statistic": "ratio"}, "paragraphs=True: expected statistic='windowed'"),
        ({"tokenizer": TOKENIZER}, "paragraphs=True: expected a tokenizer that writes"),
        ({"tokenizer": None, "forget": [[1, 2]], "retain": [[1, 2]]}, "paragraphs=True: expected a tokenizer, which"),
        ({"preset": "faithful"}, "windowed"),
    ],
)
def test_what_does_not_go_with_paragraphs_is_refused(options, named):
    with pytest.raises(GuardrailError, match=named):
        fit(**PARAGRAPHS | {"forget": FORGET, "retain": RETAIN} | options)
