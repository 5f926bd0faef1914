"""Pooled figures of the alignment benchmark: sets share no city, and shares are pooled with the right n."""

import pytest
from scipy.stats import ttest_rel

from benchmarks.alignment.pooled_data import PER_COUNTRY, SIZE, _sets
from benchmarks.alignment.pooled_relearning import pooled_points
from benchmarks.alignment.pooled_sizes import SETS, SHARES, TOGETHER, by_size, groups
from benchmarks.alignment.pooled_summary import paired, pooled
from benchmarks.site_pages import alignment_pooled as page
from sae_unlearn.alignment import EntitySet
from sae_unlearn.alignment.closed_form import solve
from sae_unlearn.options.train import TrainOptions


def test_no_city_is_in_two_sets_and_no_country_fills_one():
    cities = EntitySet(
        {"entity": f"Town {i}", "entity_type": "city", "attributes": {"country": [f"Land {i % 7}"]}} for i in range(95)
    )
    sets = _sets(list(cities))
    names = [name for part in sets for name in part.names]
    assert len(sets) >= 5
    assert len(set(names)) == len(names)
    assert all(len(part) == SIZE for part in sets)
    for part in sets:
        countries = [city.attributes["country"][0] for city in part]
        assert max(map(countries.count, countries)) <= PER_COUNTRY


def cell(right, others, near, damage):
    return {
        "targets seen": [right, 10],
        "targets unseen": [right, 10],
        "targets unseen p": [0.5, 10],
        "others unseen": [others, 10],
        "near": [near, 20],
        "int4": {"targets unseen": [right + 1, 10]},
        "damage": damage,
    }


def test_targets_are_pooled_and_what_is_asked_again_is_not_counted_again():
    found = pooled([cell(1, 10, 19, 0.02), cell(3, 8, 18, 0.03)])
    assert found["targets"] == 20
    assert found["targets unseen"]["value"] == pytest.approx(0.2)
    assert found["targets unseen"]["n"] == 20
    assert found["int4"]["value"] == pytest.approx(0.3)
    assert found["others unseen"]["value"] == pytest.approx(18 / 20)
    assert found["others unseen"]["n"] == 20
    assert found["damage"] == pytest.approx(0.025)
    assert found["targets unseen p"] == pytest.approx(0.05)


@pytest.mark.parametrize(("sets", "n"), [(1, 20), (4, 80), (8, 80)])
def test_four_sets_are_asked_all_facts(sets, n):
    assert pooled([cell(1, 10, 19, 0.02)] * sets)["near"]["n"] == n


def test_recipes_are_paired_over_the_sets_that_both_have():
    ours = [{**cell(right, 9, 18, 0.02), "set": i} for i, right in enumerate((1, 2, 0, 3), start=1)]
    theirs = [{**cell(right, 9, 18, 0.03), "set": i} for i, right in enumerate((6, 8, 5), start=2)]
    found = paired(ours, theirs)
    assert found["sets"] == [2, 3, 4]
    difference = found["targets unseen"]
    assert (difference["first"], difference["second"]) == pytest.approx((5 / 30, 19 / 30))
    interval = ttest_rel([0.2, 0.0, 0.3], [0.6, 0.8, 0.5]).confidence_interval()
    assert (difference["low"], difference["high"]) == pytest.approx(tuple(interval))
    assert difference["value"] == pytest.approx((2 + 0 + 3 - 6 - 8 - 5) / 30)
    assert found["damage"]["value"] == pytest.approx(-0.01)
    assert "probe targets" not in found  # no cell has it


def test_one_set_gives_no_difference():
    one = [{**cell(1, 9, 18, 0.02), "set": 1}]
    assert paired(one, one) == {"sets": [1]}


def test_the_default_recipe_is_the_one_that_the_rule_of_the_plan_chooses(monkeypatch):
    assert TrainOptions().init == ("closed_form" if page.is_better() else "zero")
    measured = page.read_json(page.RESULTS)
    for key, part, value in (
        ("sets", None, [1, 2, 3, 4, 5]),
        ("targets unseen", "high", 0.001),
        ("damage", "first", 0.031),
        ("others unseen", "value", -0.031),
    ):
        found = {**measured["against"]["gradient"]}
        found[key] = value if part is None else {**found[key], part: value}
        monkeypatch.setattr(page, "read_json", lambda name, found=found: {"against": {"gradient": found}})
        assert not page.is_better(), key


def test_the_page_counts_the_sets_in_which_the_search_of_the_library_ends_at_once(monkeypatch):
    ends = (solve._SPENT * solve.BUDGET, solve.BUDGET)
    assert ends == pytest.approx(page.ENDS)
    assert solve._START == 20.0
    cells = [{"recipe": "closed_form", "solve_damage": at} for at in (0.02, 0.03, 0.035, 0.039, 0.05)]
    monkeypatch.setattr(page, "read_json", lambda name: {"cells": [*cells, {"recipe": "base"}]})
    said = page.searched()
    assert "In 3 of 5 sets" in said
    assert "In 1 sets it would go on to a larger" in said


def test_relearning_is_pooled_by_recipe_side_and_measure():
    def attacked(number, taught, untaught, p):
        sides = {
            "taught": {"picks": [taught, 5], "says": [taught, 5], "p": [p, 5]},
            "untaught": {"picks": [untaught, 5], "says": [0, 5], "p": [p / 2, 5]},
        }
        return {"recipe": "closed_form", "attack": "lora", "set": number, "steps": {"0": sides, "20": sides}}

    found = pooled_points([attacked(1, 5, 1, 2.0), attacked(2, 4, 3, 3.0)])
    points = {(p["cities"], p["measure"]): p for p in found}
    assert len(found) == len(points) == 6
    assert {p["n"] for p in found} == {10}
    assert points["taught", "picks"]["steps"]["20"]["value"] == pytest.approx(0.9)
    assert points["untaught", "picks"]["steps"]["0"]["value"] == pytest.approx(0.4)
    assert points["untaught", "p"]["steps"]["20"]["value"] == pytest.approx(0.25)


def sized(cities, right, n):
    return {"cities": cities, "targets unseen": [right, n], "damage": 0.1} | {
        share: [5, 10] for share in SHARES if share != "targets unseen"
    }


def test_cities_of_a_size_are_pooled_and_facts_are_counted_once():
    found = by_size(
        {
            "base": {**sized(0, 180, 200), "cities": 0},
            "together-1-5": sized(50, 10, 50),
            "together-6-10": sized(50, 20, 50),
            "chain": {"steps": []},
        }
    )
    assert list(found) == ["0", "50"]
    assert found["50"]["targets"] == 100
    assert found["50"]["targets unseen"]["value"] == pytest.approx(0.3)
    assert found["50"]["targets unseen"]["n"] == 100
    assert found["50"]["near"]["n"] == 10


def test_every_set_is_in_one_group_of_each_size():
    assert [len(groups(size)) for size in TOGETHER] == [4, 1]
    assert all(sorted(i for few in groups(size) for i in few) == list(SETS) for size in TOGETHER)
