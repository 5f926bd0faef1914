"""Answers that are stored with their verdict, counted again."""

import json
from pathlib import Path

from sae_unlearn.answer_matching import AnswerMatcher
from sae_unlearn.demo.texts import load_demo_texts


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_demo_s_answers_are_right_by_the_rule_of_today() -> None:
    facts = [fact for side in load_demo_texts().facts.values() for fact in side]
    accepted = {fact.prompt: fact.answers for fact in facts}
    stored = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))["facts"]
    assert len(stored) == len(facts) == 96
    for fact in stored:
        matcher = AnswerMatcher(accepted[fact["prompt"]])
        found = [matcher.matches(fact[when]) for when in ("before", "after")]
        assert found == [fact["right_before"], fact["right_after"]], fact["prompt"]
