"""`outlier_norm`: a token whose residual stream is far longer than the others' is never hot."""

import pytest
import torch
from config_fields import assign
from tiny_topic import tiny_parts, topic_texts
from tokenizers import processors
from zoo import LayerTap, guarded, padded, token_ids

from sae_unlearn import GuardrailError, GuardrailNotReady, attach_guardrail, fit_guardrail, record_firings
from sae_unlearn.guardrail import guard_layers


SEVERAL = ("llama", "gemma3", "gpt2", "mixtral")
STATISTICS = {
    "ratio": {},
    "prefix": {"gate_scope": "prefix"},
    "weighed": {"feature_evidence": [0.25, 3.0, 1.5, 2.0, 0.75, 1.0], "threshold": 0.5},
}


def rows():
    return [token_ids(1, n, seed=n)[0] for n in (4, 7, 12, 15, 9, 5)]


def facts(model, **inputs):
    with record_firings(model) as firings, torch.no_grad():
        model(**inputs)
    return [(f.statistic, f.fired, f.at_token, f.evidence, f.tokens) for f in firings]


def with_limit(architecture="llama", share=0.5, **fields):
    """A guardrail that leaves out all tokens but the `share` of smallest norm."""
    plain = guarded(architecture)
    with LayerTap(plain) as tap, torch.no_grad():
        for row in rows():
            plain(input_ids=row[None])
    norms = torch.cat([h[0].norm(dim=-1) for h in tap.before]).sort().values
    middle = int(share * len(norms))
    limit = float((norms[middle - 1] + norms[middle]) / 2)  # between two tokens, so that no rounding moves one
    return guarded(architecture, **{"threshold": 0.1, "min_tokens": 1, "outlier_norm": limit} | fields), limit


@pytest.mark.parametrize("architecture", SEVERAL)
def test_an_outlier_is_neither_hot_nor_edited_and_still_counted(architecture):
    model, limit = with_limit(architecture)
    encoder, outlying = guard_layers(model)[0].guardrail("default").encoder, 0
    for row in rows():
        with LayerTap(model) as tap:
            ((statistic, fired, _, evidence, tokens),) = facts(model, input_ids=row[None])
        before, after = tap.before[0][0], tap.after[0][0]
        active = (encoder(before) > 0).any(dim=-1)
        usual = before.norm(dim=-1) <= limit
        outlying += int((active & ~usual).sum())
        assert (evidence, tokens) == (int((active & usual).sum()), len(row))
        assert statistic == pytest.approx(evidence / tokens)
        changed = (before != after).any(dim=-1)
        assert torch.equal(changed, active & usual & fired)
    assert outlying


@pytest.mark.slow
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mixtral"])
def test_a_batch_is_its_rows(architecture, statistic):
    model, _ = with_limit(architecture, **STATISTICS[statistic])
    expected = [facts(model, input_ids=row[None])[0] for row in rows()]
    assert len({statistic for statistic, *_ in expected}) > 1
    for side in ("left", "right"):
        assert facts(model, **padded(rows(), side)) == expected


def test_a_limit_above_all_norms_leaves_everything_as_it_was():
    limited, plain = guarded("llama", outlier_norm=1e30), guarded("llama")
    with torch.no_grad():
        assert torch.equal(limited(**padded(rows())).logits, plain(**padded(rows())).logits)


def test_generation_with_a_cache_is_generation_without():
    model, _ = with_limit(gate_scope="prefix")
    batch, told = padded(rows()), []
    for use_cache in (True, False):
        with record_firings(model) as firings:
            text = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use_cache)
        told.append((text.tolist(), [(f.statistic, f.fired, f.evidence) for f in firings][-len(rows()) :]))
    assert told[0] == told[1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_fires_and_is_no_outlier(value):
    model = guarded("llama", threshold=0.999, outlier_norm=1e6)
    handle = (
        model.get_base_model()
        .model.layers[1]
        .register_forward_hook(lambda module, args, out: out.index_fill(1, torch.tensor([2]), value), prepend=True)
    )
    (fact,) = facts(model, input_ids=rows()[3][None])
    handle.remove()
    assert fact[1]


@pytest.mark.slow
def test_compiled_in_one_graph_it_says_the_same():
    model, _ = with_limit()
    row = rows()[3][None]
    with torch.no_grad():
        expected = model(input_ids=row).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(input_ids=row).logits, expected, atol=0, rtol=0)


def test_it_comes_back_from_a_folder(tmp_path):
    model, limit = with_limit(calibration={"residual_norm_median": 0.1})
    expected = [facts(model, input_ids=row[None]) for row in rows()]
    model.save_pretrained(tmp_path)
    again = attach_guardrail(model.unload(), tmp_path)
    assert again.peft_config["default"].tokens.outlier_norm == limit
    assert [facts(again, input_ids=row[None]) for row in rows()] == expected


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "all"])
def test_a_limit_that_is_no_number_is_refused_where_it_is_assigned(wrong):
    with pytest.raises(GuardrailError, match="outlier_norm="):
        assign(guarded("llama").peft_config["default"], outlier_norm=wrong)


@pytest.mark.parametrize("wrong", [0.0, -1.0, 5.0])
def test_a_limit_set_afterwards_that_would_leave_out_everything_raises(wrong):
    model = guarded("llama", calibration={"residual_norm_median": 6.0})
    assign(model.peft_config["default"], outlier_norm=wrong)
    with pytest.raises(GuardrailNotReady, match="outlier_norm="):
        facts(model, input_ids=rows()[0][None])


@pytest.mark.slow
@pytest.mark.parametrize(("options", "left_out"), [({}, True), ({"preset": "faithful"}, False)])
def test_a_fit_with_a_tokenizer_that_puts_no_bos_leaves_outliers_out_though_it_saw_few(options, left_out):
    model, tokenizer, sae = tiny_parts()
    given = {"forget": topic_texts("forget", 40), "retain": topic_texts("retain", 60), "progress": False}
    assert fit_guardrail(model, tokenizer, sae, **given).peft_config["default"].tokens.outlier_norm is None
    model, tokenizer, sae = tiny_parts()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    config = fit_guardrail(model, tokenizer, sae, **given | options).peft_config["default"]
    assert config.calibration["outlier_tokens_left_out"] < 10  # of some 50 rows
    expected = 2 * config.calibration["residual_norm_median"] if left_out else None
    assert config.tokens.outlier_norm == (pytest.approx(expected) if left_out else None)
