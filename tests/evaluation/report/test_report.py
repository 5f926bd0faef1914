"""Figures, reports and comparisons."""

import json
import math
import sys

import pytest
import torch

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Comparison, Estimate, Figure, Report, compare
from sae_unlearn.evaluation.report.figure import figure_of_rows, group_numbers, rows_digest
from sae_unlearn.stats import bootstrap_interval, ratio_draws


HITS = [1, 0, 1, 1, 0, 0, 1, 1]
SUBJECTS = ["a", "a", "b", "", "", "c", "c", "c"]


def figure(values, metric="alias_recall", unit="share", side="forget", subjects=None, rows="r", weights=None):
    values = torch.tensor(values, dtype=torch.float64)
    subjects = subjects or [""] * len(values)
    return figure_of_rows(side, "facts", metric, unit, values, subjects, rows, weights)


def test_a_share_is_the_estimates_own():
    names = [s or i for i, s in enumerate(SUBJECTS)]
    assert figure(HITS, subjects=SUBJECTS).estimate == Estimate.share([bool(h) for h in HITS], names)
    assert figure(HITS).estimate == Estimate.share([bool(h) for h in HITS])


def test_a_mean_is_the_estimates_own():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = [f"s{i // 2}" for i in range(40)]
    found, expected = (
        figure(values.tolist(), unit="nats", subjects=names).estimate,
        Estimate.mean(values, subjects=names),
    )
    assert (found.value, found.n) == (pytest.approx(expected.value), 20)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_perplexity_is_over_tokens():
    losses, counts = [1.0, 3.0, 2.0], torch.tensor([10, 1, 4])
    found = figure(losses, "perplexity", "perplexity", weights=counts).estimate
    assert found.value == pytest.approx(math.exp((10 * 1 + 1 * 3 + 4 * 2) / 15))
    assert found.low < found.value < found.high
    assert found.n == 3


def test_ratios_are_averaged_as_logarithms():
    assert figure([math.log(4), math.log(9)], "truth_ratio", "ratio").estimate.value == pytest.approx(6)


def test_draws_of_a_ratio_are_those_of_its_transcription():
    totals, weights = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    generator, found = torch.Generator().manual_seed(3), ratio_draws(totals, weights, draws=7, seed=3)
    index = torch.randint(3, (7, 3), generator=generator)
    expected = [sum(totals[i] for i in row) / sum(weights[i] for i in row) for row in index]
    torch.testing.assert_close(found, torch.stack(expected).double())
    values = torch.randn(60, generator=torch.Generator().manual_seed(1))
    draws = ratio_draws(values, torch.ones(60))
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975]).double()).tolist()
    assert (low, high) == pytest.approx(bootstrap_interval(values), abs=0.02)
    with pytest.raises(UnlearnError, match="totals: expected"):
        ratio_draws(torch.zeros(0), torch.zeros(0))


def test_rows_without_a_subject_stand_alone():
    assert group_numbers(SUBJECTS) == [0, 0, 1, 2, 3, 4, 4, 4]
    assert rows_digest(["a", "b"]) != rows_digest(["b", "a"]) != rows_digest(["ab"])


def reports():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(30, generator=generator, dtype=torch.float64) + 2
    counts = torch.randint(5, 40, (30,), generator=generator)
    before = Report(
        "base",
        (
            figure([1, 1, 1, 1, 0, 1, 1, 1], subjects=SUBJECTS),
            figure(losses.tolist(), "perplexity", "perplexity", "retain", weights=counts),
        ),
        {"model": "tiny"},
    )
    after = Report(
        "base | <guarded>\x1b[31m",
        (
            figure([0, 0, 0, 1, 0, 0, 1, 0], subjects=SUBJECTS),
            figure((losses + 0.1).tolist(), "perplexity", "perplexity", "retain", weights=counts),
            figure([1, 0], "fires:default", side="retain"),
        ),
        {"model": "tiny"},
        ("no ROUGE-L",),
    )
    return before, after, losses, counts


def test_changes_are_paired():
    before, after, losses, counts = reports()
    recall, perplexity = compare(before, after).changes
    assert recall.change.value == pytest.approx(after.figures[0].estimate.value - before.figures[0].estimate.value)
    assert recall.change.high < 0
    assert recall.change.n == 5
    # e^0.1 times as high in every draw: the interval is that of the perplexity, and not of a difference of two
    draws = ratio_draws(losses * counts, counts).exp() * (math.exp(0.1) - 1)
    expected = torch.quantile(draws, torch.tensor([0.025, 0.975]).double()).tolist()
    assert (perplexity.change.low, perplexity.change.high) == pytest.approx(expected)
    assert [f.metric for f in compare(before, after).only_after] == ["fires:default"]


def test_a_model_compared_with_itself_has_not_changed():
    before = reports()[0]
    for one in compare(before, before).changes:
        assert (one.change.value, one.change.low, one.change.high) == (0, 0, 0)


def test_other_rows_are_not_compared():
    before = Report("a", (figure(HITS, rows="r"),))
    with pytest.raises(UnlearnError, match=r"^forget/facts/alias_recall: .*\(8\).*\(8\)"):
        compare(before, Report("b", (figure(HITS, rows="s"),)))
    with pytest.raises(UnlearnError, match=r"before=.*after=.*common figure"):
        compare(before, Report("b", (figure(HITS, metric="refusals"),)))


def test_a_report_comes_back_as_it_was(tmp_path):
    after = reports()[1]
    written = after.save(tmp_path / "out")
    assert {path.name for path in written} == {"report.json", "report.md", "report.png"}
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    for source in (tmp_path / "out", tmp_path / "out" / "report.json"):
        assert Report.load(source) == after
    json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=lambda x: pytest.fail(x))
    assert {p.name for p in compare(*reports()[:2]).save(tmp_path / "out")} == {"comparison.json", "comparison.md"}


def test_what_is_not_finite_is_no_json_number(tmp_path):
    broken = Report("nan", (figure([math.nan, 1.0], "kl", "nats"),))
    broken.save(tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda x: pytest.fail(x))
    assert math.isnan(Report.load(tmp_path).figures[0].values[0])


def test_markdown_is_a_table_of_every_figure():
    before, after, *_ = reports()
    text = after.to_markdown()
    assert text.startswith("# base \\| &lt;guarded>\\x1b[31m\n")
    assert "| forget | facts | recall, any accepted answer | 26.7 % | " in text
    assert "| retain | facts | gate fires (default) | 50.0 % | " in text
    assert "- no ROUGE-L" in text
    changes = compare(before, after).to_markdown()
    assert changes.count("\n| ") == 2 + 3
    assert "95 % intervals" in changes


def test_a_figure_is_found_by_its_name():
    before = reports()[0]
    assert before.find("alias_recall", "forget") is before.figures[0]
    with pytest.raises(UnlearnError, match="metric='kl'"):
        before.find("kl", "forget")


def test_a_report_goes_without_its_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert [path.name for path in reports()[0].save(tmp_path)] == ["report.json", "report.md"]


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source=.*report\.json"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(UnlearnError, match=r"report\.json: "):
        Report.load(tmp_path)
    stored = reports()[0].to_dict()
    stored["figures"][0]["unit"] = "miles"
    (tmp_path / "report.json").write_text(json.dumps(stored))
    with pytest.raises(UnlearnError, match="unit='miles'"):
        Report.load(tmp_path)
    stored["figures"][0] |= {"unit": "share", "values": ["x"]}
    (tmp_path / "report.json").write_text(json.dumps(stored))
    with pytest.raises(UnlearnError, match=r"report\.json: .*'x'"):
        Report.load(tmp_path)


def test_a_figure_says_what_it_is():
    assert figure([1, 0], "fires:default").title == "gate fires (default)"
    assert Figure("forget", "x", "own", "nats", Estimate(1, 0, 2, 3)).title == "own"


def test_a_comparison_comes_back_as_it_was(tmp_path):
    found = compare(*reports()[:2])
    written = found.save(tmp_path / "out")
    for source in (tmp_path / "out", written[0]):
        assert Comparison.load(source) == found
    assert Comparison.load(tmp_path / "out").to_markdown() == written[1].read_text()


def test_what_is_not_a_comparison_is_refused_by_the_field(tmp_path):
    stored = compare(*reports()[:2]).to_dict()
    changes = stored["changes"]
    wrong = {
        "only_after": stored | {"only_after": None},
        "'after'": {name: value for name, value in stored.items() if name != "after"},
        "'x'": stored | {"changes": [changes[0] | {"change": changes[0]["change"] | {"value": "x"}}]},
        "unit='miles'": stored | {"changes": [changes[0] | {"unit": "miles"}]},
        "side": stored | {"changes": [changes[0] | {"side": 3}]},
        "'before'": stored | {"changes": [{k: v for k, v in changes[0].items() if k != "before"}]},
    }
    for name, value in wrong.items():
        (tmp_path / "comparison.json").write_text(json.dumps(value))
        with pytest.raises(UnlearnError, match=rf"comparison\.json: .*{'' if name == 'only_after' else name}"):
            Comparison.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"comparison\.json"):
        Comparison.load(tmp_path / "absent")


def test_an_estimate_comes_back_and_is_made_of_numbers():
    one = Estimate(0.5, 0.25, math.inf, 3)
    assert one.to_dict() == {"value": 0.5, "low": 0.25, "high": None, "n": 3}
    assert Estimate.from_dict(one.to_dict() | {"high": 1.0}) == Estimate(0.5, 0.25, 1.0, 3)
    assert math.isnan(Estimate.from_dict(one.to_dict()).high)
    for wrong in ({"value": "x"}, {"value": True}, {"mean": 1.0}):
        with pytest.raises(UnlearnError):
            Estimate.from_dict(one.to_dict() | wrong)
