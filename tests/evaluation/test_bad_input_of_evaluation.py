"""Bad input to every public function of the evaluation and the demo, and to every method of their classes: an error
that names it, and never one from deep inside.

A row is a call and words of the message that it has to raise; `tests/test_bad_input.py` is of the package.
"""

import inspect

import pytest
import torch
from public_calls import methods
from tiny_report import report
from tiny_topic import tiny_tokenizer
from zoo import base_model, guarded

from sae_unlearn import Entity, SparseAutoencoder, UnlearnError, demo, evaluation
from sae_unlearn.demo import DemoTexts, load_demo_model, load_demo_texts, run_demo
from sae_unlearn.evaluation import (
    AuditReport,
    AuditRow,
    Change,
    Choice,
    Comparison,
    Estimate,
    Fact,
    Figure,
    GuardrailPicture,
    Report,
    Sweep,
    add_to_card,
    answer_likelihoods,
    ask,
    audit,
    bootstrap_interval,
    candidate_log_probs,
    compare,
    complete,
    count_answers,
    entity_facts,
    evaluate,
    feature_contexts,
    forget_quality,
    interference,
    log_truth_ratios,
    model_utility,
    option_likelihoods,
    picture_guardrail,
    rank_answers,
    recall,
    right_by_letter,
    right_by_likelihood,
    rouge_l,
    row_divergences,
    row_firings,
    row_losses,
    stored_picture,
    sweep_guardrail,
    truth_scores,
    wilson_interval,
)


class Given:
    """A bare model, one with a guardrail, a tokenizer, an SAE of that model, and states."""

    def __init__(self):
        self.model, self.guarded, self.tokenizer = base_model("llama"), guarded("llama"), tiny_tokenizer()
        eye, zeros = torch.eye(32), torch.zeros(32)
        self.sae = SparseAutoencoder(eye, zeros, eye, zeros, threshold=torch.ones(32), layer=1)
        self.bare, self.both = (self.model, self.tokenizer), (self.guarded, self.tokenizer)


@pytest.fixture(scope="module")
def it():
    return Given()


ROW = AuditRow("plain", "", 0.0, report("a").figures, ())
AUDIT = AuditReport("an audit", (ROW,))
FACTS, CHOICES = [Fact("w2", ("w3",))], [Choice("w2", ("w3", "w4"), 0)]
ENTITIES = [Entity("w2", "thing", {"colour": "w3"})]
NONE, SCORES = torch.zeros(0), torch.zeros(2, 3)
BAD = [
    # function, call, words of the message
    (Fact, lambda it: Fact(3, ("w3",)), "prompt: .*got .*int"),
    (Fact, lambda it: Fact("w2", "w3"), "answers .*: .*got .*str"),
    (Choice, lambda it: Choice("w2", "w3", 0), "options .*: .*got .*str"),
    (Choice, lambda it: Choice("w2", ("w3", "w4"), 5), "right=5"),
    (recall, lambda it: recall("a model", it.tokenizer, FACTS), "model='a model'"),
    (recall, lambda it: recall(*it.bare, "w2"), "facts: .*got .*str"),
    (recall, lambda it: recall(*it.bare, FACTS, batch_size=0), "batch_size=0"),
    (recall, lambda it: recall(*it.bare, FACTS, max_new_tokens=0), "max_new_tokens=0"),
    (complete, lambda it: complete(*it.bare, [], max_new_tokens=4), "prompts: .* got 0"),
    (complete, lambda it: complete(*it.bare, "w2", max_new_tokens=4), "prompts: .*got .*str"),
    (complete, lambda it: complete(*it.bare, [3], max_new_tokens=4), "prompts: .*got .*int"),
    (ask, lambda it: ask(*it.bare, []), r"^found=\[\]"),
    (count_answers, lambda it: count_answers([]), r"^found=\[\]"),
    (count_answers, lambda it: count_answers([3]), "found: .*got .*int"),
    (rouge_l, lambda it: rouge_l([3]), "found: .*got .*int"),
    (option_likelihoods, lambda it: option_likelihoods(*it.bare, [3]), "choices: .*got .*int"),
    (option_likelihoods, lambda it: option_likelihoods(*it.bare, CHOICES, batch_size=0), "batch_size=0"),
    (right_by_likelihood, lambda it: right_by_likelihood(CHOICES, []), "choices, likelihoods: "),
    (right_by_letter, lambda it: right_by_letter(*it.bare, []), "^choices: .*got 0"),
    (right_by_letter, lambda it: right_by_letter(*it.bare, CHOICES, orders=0), "orders=0"),
    (log_truth_ratios, lambda it: log_truth_ratios(CHOICES, []), "choices, likelihoods: "),
    (log_truth_ratios, lambda it: log_truth_ratios(CHOICES, [], average="other"), "average='other'"),
    (truth_scores, lambda it: truth_scores([1.0]), "log_ratios: .*got .*list"),
    (forget_quality, lambda it: forget_quality(NONE, NONE), "^log_ratios, reference: .*got 0 and 0"),
    (forget_quality, lambda it: forget_quality([1.0], [1.0]), "log_ratios: .*got .*list"),
    (answer_likelihoods, lambda it: answer_likelihoods(*it.bare, ["w2"], []), "prompts, answers: "),
    (answer_likelihoods, lambda it: answer_likelihoods(*it.bare, ["w2"], [""]), "answers=''"),
    (rank_answers, lambda it: rank_answers(SCORES, [0]), "for each prompt"),
    (rank_answers, lambda it: rank_answers(SCORES, [0, 7]), r"right=\[0, 7\]"),
    (candidate_log_probs, lambda it: candidate_log_probs(*it.bare, [], ["w3"]), "prompts: .* got 0"),
    (candidate_log_probs, lambda it: candidate_log_probs(*it.bare, ["w2"], []), "candidates: .* got 0"),
    (candidate_log_probs, lambda it: candidate_log_probs(*it.bare, ["w2"], [""]), "reword"),
    (bootstrap_interval, lambda it: bootstrap_interval(torch.ones(3), level=2.0), "level=2.0"),
    (bootstrap_interval, lambda it: bootstrap_interval([1.0]), "values: .*got .*list"),
    (wilson_interval, lambda it: wilson_interval(-1, 2), "successes=-1"),
    (wilson_interval, lambda it: wilson_interval(0, 0), "^n=0"),
    (entity_facts, lambda it: entity_facts([3]), "entities: .*got .*int"),
    (compare, lambda it: compare("a", "b"), "before: .*got .*str"),
    (model_utility, lambda it: model_utility(*it.bare, None, None, None), "retain: .*got .*NoneType"),
    (evaluate, lambda it: evaluate(*it.bare, forget=["w2"], batch_size=0), "batch_size=0"),
    (row_losses, lambda it: row_losses(*it.bare, [3]), "texts: .*str"),
    (row_divergences, lambda it: row_divergences(*it.bare, ["w2"]), "base"),
    (row_firings, lambda it: row_firings(*it.bare, ["w2"]), "with a guardrail"),
    (interference, lambda it: interference(*it.both, {"other": ["w2"]}), "'other'"),
    (feature_contexts, lambda it: feature_contexts(*it.bare, ["w2"]), "with a guardrail"),
    (feature_contexts, lambda it: feature_contexts(*it.both), "retain=None"),
    (feature_contexts, lambda it: feature_contexts(*it.both, ["w2"], contexts=0), "contexts=0"),
    (sweep_guardrail, lambda it: sweep_guardrail(*it.bare, ["w2"]), "with a guardrail"),
    (sweep_guardrail, lambda it: sweep_guardrail(*it.both, ["w2"], doses=[-1.0]), "amplify"),
    (picture_guardrail, lambda it: picture_guardrail(*it.both), "retain=None"),
    (picture_guardrail, lambda it: picture_guardrail(*it.both, ["w2"], adapter_name="x"), "'x'"),
    (stored_picture, lambda it: stored_picture("no/such/folder"), "neither a folder"),
    (add_to_card, lambda it: add_to_card("a report", "no-folder"), "report: "),
    (add_to_card, lambda it: add_to_card(Report("a", (), {}, ()), "no-folder"), "no-folder"),
    (Change.from_dict, lambda it: Change.from_dict({}), "change of a comparison: .* 'before'"),
    (Comparison.load, lambda it: Comparison.load("no/such"), "no/such"),
    (Comparison.load, lambda it: Comparison.load(3), "path=3: "),
    (Comparison.from_dict, lambda it: Comparison.from_dict({}), "comparison: .* 'changes'"),
    (Estimate.from_dict, lambda it: Estimate.from_dict({}), "estimate of a report: .* 'value'"),
    (Sweep.from_dict, lambda it: Sweep.from_dict({}), "sweep: .* 'doses'"),
    (audit, lambda it: audit(*it.bare, None), "NoneType"),
    (audit, lambda it: audit(*it.bare, [3]), "int"),
    (audit, lambda it: audit(*it.bare, []), r"forget=\[\]"),
    (AuditReport.find, lambda it: AUDIT.find("none"), "attack='none'"),
    (AuditReport.save, lambda it: AUDIT.save(3), "path=3: "),
    (AuditReport.load, lambda it: AuditReport.load("no/such"), "no/such"),
    (AuditReport.load, lambda it: AuditReport.load(3), "path=3: "),
    (AuditReport.from_dict, lambda it: AuditReport.from_dict({}), "audit: .* 'neighbors'"),
    (AuditReport.from_dict, lambda it: AuditReport.from_dict(3), "audit: "),
    (AuditRow.from_dict, lambda it: AuditRow.from_dict({}), "row of an audit: .* 'audited'"),
    (Comparison.save, lambda it: Comparison("a", "b", ()).save(3), "path=3: "),
    (Estimate.mean, lambda it: Estimate.mean(NONE), "^values: .*got none"),
    (Estimate.mean, lambda it: Estimate.mean(torch.ones(2), subjects=["a"]), "subjects: .* 2 values, got 1"),
    (Estimate.share, lambda it: Estimate.share([]), "^n=0"),
    (Estimate.share, lambda it: Estimate.share(3), "hits: .*got .*int"),
    (Estimate.share, lambda it: Estimate.share([True], subjects=[]), "subjects: .* 1 values, got 0"),
    (Figure.from_dict, lambda it: Figure.from_dict({}), "figure of a report: .* 'estimate'"),
    (Figure.from_dict, lambda it: Figure.from_dict(3), "figure of a report: "),
    (GuardrailPicture.save, lambda it: picture_guardrail(*it.both, ["w2"], progress=False).save(3), "path=3: "),
    (Report.find, lambda it: report("a").find("none", "forget"), "metric='none'"),
    (Report.save, lambda it: report("a").save(3), "path=3: "),
    (Report.load, lambda it: Report.load("no/such"), "no/such"),
    (Report.from_dict, lambda it: Report.from_dict({}), "evaluation: .* 'title'"),
    (Report.from_dict, lambda it: Report.from_dict({"title": 1, "about": 2, "notes": 3, "figures": 4}), "evaluation"),
    (Sweep.save, lambda it: Sweep((), (), {}, {}).save(3), "path=3: "),
    (Sweep.load, lambda it: Sweep.load("no/such"), "no/such"),
    (Sweep.load, lambda it: Sweep.load(3), "path=3: "),
    (Sweep.check_is_of, lambda it: Sweep((), (), {}, {}).check_is_of("a config"), "config: .*got .*str"),
    (load_demo_model, lambda it: load_demo_model(torch.int8), "dtype=torch.int8"),
    (load_demo_model, lambda it: load_demo_model("float32"), "dtype='float32'"),
    (DemoTexts.reduced, lambda it: load_demo_texts().reduced(0, 1, 1), "heldout=0"),
    (run_demo, lambda it: run_demo("a model", it.tokenizer, it.sae, "x", load_demo_texts()), "model: .*got .*str"),
    (run_demo, lambda it: run_demo(it.model, it.tokenizer, "an SAE", "x", load_demo_texts()), "sae: .*got .*str"),
    (run_demo, lambda it: run_demo(it.model, it.tokenizer, it.sae, "x", ["w2"]), "texts: .*got .*list"),
]
WITHOUT_A_ROW = {
    "AuditRow.find": "None where there is no such figure",
    "AuditRow.fires": "None where there is no such figure",
    "load_demo_sae": "it is given nothing",
    "load_demo_texts": "it is given nothing",
}


@pytest.mark.parametrize(
    ("call", "words"), [row[1:] for row in BAD], ids=[f"{i}-{r[0].__name__}" for i, r in enumerate(BAD)]
)
def test_bad_input_is_refused_by_name(call, words, it):
    with pytest.raises((UnlearnError, OSError), match=rf"(?i){words}"):
        call(it)


def public_calls():
    """By name, every public function, and every method that is given something."""
    for module in (evaluation, demo):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield name, found
            elif inspect.isclass(found) and not issubclass(found, tuple):
                yield from methods(name, found)


def test_every_public_function_and_method_has_a_row():
    tested, public = {row[0] for row in BAD}, dict(public_calls())
    assert [name for name, call in public.items() if call not in tested and name not in WITHOUT_A_ROW] == []
    assert set(WITHOUT_A_ROW) <= set(public)
