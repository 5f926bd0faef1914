"""Unknown entities are matched by type and name length."""

import pytest

from sae_unlearn.alignment.dataset import match_unknown
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.errors import AlignmentError


def named(*names, entity_type="city"):
    return EntitySet(Entity(name, entity_type) for name in names)


UNKNOWN = named("aaaa", "bb", "cccccc", "dddd", "eeeeeeeeee") + named("ffff", "gg", entity_type="Song")


def test_type_first_then_length():
    targets = named("Oslo", "Rome") + named("Help", entity_type="song")
    matched = match_unknown(targets, UNKNOWN)
    assert set(matched[0][:2]) == {0, 3}
    assert set(matched[0][2:4]) == {1, 2}
    assert matched[0][4] == 4
    assert set(matched[1]) == {0, 1, 2, 3, 4}
    assert matched[2] == [5, 6]
    assert [len(m) for m in match_unknown(targets, UNKNOWN, per_target=3)] == [3, 3, 2]


def test_equally_near_ones_take_turns():
    unknown = named(*(f"x{i:02}" for i in range(40)))
    targets = named(*(f"y{i:02}" for i in range(20)))
    matched = match_unknown(targets, unknown, per_target=4, seed=5)
    assert len({i for m in matched for i in m}) > 25
    assert matched == match_unknown(targets, unknown, per_target=4, seed=5)
    assert matched != match_unknown(targets, unknown, per_target=4, seed=6)
    assert matched[3:4] == match_unknown(targets[3:4], unknown, per_target=4, seed=5)  # whatever the other targets


def test_a_target_is_not_its_own_match():
    unknown = EntitySet([Entity("Oslo", "city"), Entity("Rom", "city", {}, ("Rome",)), Entity("Bonn", "city")])
    oslo, rome = match_unknown(named("OSLO", "Rome"), unknown)
    assert oslo == [2, 1]
    assert set(rome) == {0, 2}


def test_no_match():
    with pytest.raises(AlignmentError, match=r"^unknown: .*'book'.*'Emma'.*'city', 'Song'"):
        match_unknown(named("Emma", entity_type="book"), UNKNOWN)
    with pytest.raises(AlignmentError, match=r"^unknown: .*'city'.*'Oslo'"):
        match_unknown(named("Oslo"), named("oslo"))
    with pytest.raises(AlignmentError, match="per_target=0"):
        match_unknown(named("Oslo"), UNKNOWN, per_target=0)
