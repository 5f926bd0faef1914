"""The rule by which a model's answers make an entity known, unknown or dropped."""

import pytest
from labeled_words import label, words

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling.label import LabelingRule
from sae_unlearn.errors import AlignmentError


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        ({"a": [3], "b": [10], "c": [0]}, "known"),
        ({"a": [3], "b": [2], "c": [2]}, "dropped"),
        ({"a": [2], "b": [2], "c": [0]}, "unknown"),
        ({"a": [10], "b": [2]}, "dropped"),
    ],
)
def test_the_published_rule(matches, expected):
    """Known: two attributes with three of ten matches. Unknown: none."""
    assert LabelingRule().label(matches) == expected


def test_every_question_of_an_attribute_counts():
    rule = LabelingRule(min_known=1)
    assert rule.label({"a": [3, 3]}) == "known"
    assert rule.label({"a": [10, 2]}) == "dropped"  # neither right nor wrong
    assert rule.label({"a": [2, 2]}) == "unknown"


def test_thresholds():
    strict = LabelingRule(min_known=1, max_wrong_matches=0)
    assert [strict.label({"a": [n]}) for n in (0, 1, 2, 3)] == ["unknown", "dropped", "dropped", "known"]
    loose = LabelingRule(min_known=3, max_unknown=1, min_matches=5, max_wrong_matches=4)
    assert loose.label({"a": [5], "b": [4], "c": [4]}) == "unknown"
    assert loose.label({"a": [5], "b": [5], "c": [4]}) == "dropped"
    assert loose.label({"a": [5], "b": [5], "c": [5]}) == "known"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"samples": 0}, "samples=0"),
        ({"samples": 1}, r"min_matches=3: .*pass min_matches=1"),
        ({"max_wrong_matches": 3}, "max_wrong_matches=3"),
        ({"min_known": 0}, "min_known=0"),
        ({"min_known": 1, "max_unknown": 1}, "max_unknown=1"),
        ({"temperature": 0}, "temperature=0, samples=10"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"match": "equals"}, "match='equals'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"chat_template": True}, "chat_template=True"),
    ],
)
def test_settings_that_make_no_sense(options, complaint):
    with pytest.raises(AlignmentError, match=complaint):
        label(**options)


def test_too_few_attributes():
    with pytest.raises(AlignmentError, match=r"^min_known=2: .*12 of 12 .*'w40'.*\['next'\].*min_known=1"):
        label(candidates=words(attributes=("next",)), min_known=2)
    some = words(2) + EntitySet([Entity("w60", "word")])
    with pytest.raises(AlignmentError, match=r"^min_known=1: .*1 of 3 .*'w60'.*\[\]"):
        label(candidates=some, min_known=1)
