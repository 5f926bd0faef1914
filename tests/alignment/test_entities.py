"""Sets of entities: what they accept, how files are read, and that parts share no entity."""

import csv
import json

import pytest

from sae_unlearn.alignment.entities import EntitySet, overlap
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.errors import AlignmentError


ROWS = [
    {"entity": "Paris", "entity_type": "city", "attributes": {"country": ["France"], "founded": 250}, "aliases": []},
    {"entity": "Malmö", "entity_type": "city", "attributes": {"country": "Sweden"}, "aliases": ["Malmoe"]},
    {"entity": "Paris", "entity_type": "song", "attributes": {"year": [2017, "2016"]}},
]


def cities(number, prefix="c", aliases=()):
    return EntitySet([Entity(f"{prefix}{i}", "city", {}, tuple(aliases)) for i in range(number)])


def test_an_entity():
    entity = EntitySet(ROWS)[0]
    assert entity == Entity(" Paris ", "city", {"country": ("France",), "founded": ("250",)})
    assert EntitySet(ROWS)[1].names == ("Malmö", "Malmoe")
    assert Entity("x", "city", {"a": None, "b": [], "c": ["", None, " y ", "y", float("nan")]}).attributes == {
        "c": ("y",)
    }


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"entity": " ", "entity_type": "city"}, "entity=' '"),
        ({"entity": 7, "entity_type": "city"}, "entity=7"),
        ({"entity": "x"}, r"'entity' and 'entity_type'.*entity_type="),
        ({"name": "x", "entity_type": "city"}, r"got \['entity_type', 'name'\]"),
        ({"entity": "x", "entity_type": "city", "attributes": ["a"]}, "attributes of 'x': .*list"),
        ({"entity": "x", "entity_type": "city", "country": {"a": 1}}, "'country' of 'x'={'a': 1}"),
        (
            {"entity": "x", "entity_type": "city", "attributes": {}, "country": "y"},
            r"attributes of 'x': .*'country'",
        ),
        ("Paris", "got str"),
    ],
)
def test_rows_that_are_no_entities(row, complaint):
    with pytest.raises(AlignmentError, match=complaint):
        EntitySet([row])


@pytest.mark.parametrize("again", ["paris", "PARIS ", "Malmo\u0308", "MALMÖ"])
def test_a_name_twice_within_a_type(again):
    with pytest.raises(AlignmentError, match=r"entity=.*got two"):
        EntitySet([*ROWS, {"entity": again, "entity_type": "City"}])
    EntitySet([*ROWS, {"entity": again, "entity_type": "ship"}])
    with pytest.raises(AlignmentError, match=r"entity=.*got two"):
        EntitySet(ROWS) + EntitySet([Entity(again, "city")])


def test_as_a_sequence():
    entities = EntitySet(ROWS)
    assert len(entities) == 3
    assert repr(entities) == "EntitySet(2 city, 1 song)"
    assert entities.names == ["Paris", "Malmö", "Paris"]
    assert entities.types == ["city", "song"]
    assert entities[1:] == EntitySet(ROWS[1:])
    assert entities[-1].entity_type == "song"
    assert entities.of_type("City").names == ["Paris", "Malmö"]
    assert entities[:1] + entities[1:] == entities
    assert EntitySet().names == []
    assert entities[1] in entities


# --- files -----------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path):
    entities = EntitySet(ROWS)
    entities.to_json(tmp_path / "new" / "some.json")
    assert EntitySet.from_file(tmp_path / "new" / "some.json") == entities
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "some.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    assert EntitySet.from_file(tmp_path / "some.jsonl") == entities


def test_csv(tmp_path):
    with open(tmp_path / "some.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [
                ["entity", "entity_type", "aliases", "country", "founded"],
                ["Paris", "city", "", "France", "250"],
                ["Malmö", "city", "Malmoe", "Sweden", ""],
                ["New, York|x", "city", "NY| NYC ", "United States|USA", ""],
            ]
        )
    entities = EntitySet.from_file(tmp_path / "some.csv")
    assert entities[:2] == EntitySet(ROWS[:2])
    assert entities[2] == Entity("New, York|x", "city", {"country": ("United States", "USA")}, ("NY", "NYC"))


def test_csv_of_one_type(tmp_path):
    (tmp_path / "some.csv").write_text("entity,country\nParis,France\n", encoding="utf-8")
    assert EntitySet.from_file(tmp_path / "some.csv", entity_type="city").types == ["city"]
    with pytest.raises(AlignmentError, match="Pass entity_type="):
        EntitySet.from_file(tmp_path / "some.csv")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.json", "{", "expected JSON"),
        ("a.json", "{}", "a.json: .*got dict"),
        ("a.jsonl", "[1]\n{", "expected JSON"),
        ("a.csv", "entity,entity_type\nx,city,y\n", r"a\.csv: .*'x'"),
        ("a.txt", "", "got '.txt'"),
    ],
)
def test_malformed_files(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(AlignmentError, match=complaint):
        EntitySet.from_file(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_files_in_another_encoding_are_named(tmp_path, name):
    (tmp_path / name).write_text("Malmö", encoding="latin-1")
    with pytest.raises(AlignmentError, match=rf"{name}: expected .* in UTF-8"):
        EntitySet.from_file(tmp_path / name)


def test_json_as_editors_and_other_programs_write_it(tmp_path):
    row = json.dumps({"entity": "A\u2028B", "entity_type": "city"}, ensure_ascii=False)  # a line's end to Python
    (tmp_path / "a.jsonl").write_text(f"{row}\n", encoding="utf-8-sig")
    (tmp_path / "a.json").write_text(f"[{row}]", encoding="utf-8-sig")
    assert EntitySet.from_file(tmp_path / "a.jsonl") == EntitySet.from_file(tmp_path / "a.json")


def test_only_json_is_saved(tmp_path):
    with pytest.raises(AlignmentError, match=r"a\.csv: .*\.json.*'\.csv'"):
        EntitySet(ROWS).to_json(tmp_path / "a.csv")


def test_datasets():
    datasets = pytest.importorskip("datasets")
    flat = datasets.Dataset.from_list(
        [
            {"entity": "Paris", "entity_type": "city", "country": "France", "founded": 250},
            {"entity": "Malmö", "entity_type": "city", "country": "Sweden", "founded": None},
        ]
    )
    assert [e.attributes for e in EntitySet.from_dataset(flat)] == [e.attributes for e in EntitySet(ROWS[:2])]
    nested = datasets.Dataset.from_list([entity.to_dict() for entity in EntitySet(ROWS)])  # absent attributes are None
    assert EntitySet.from_dataset(nested) == EntitySet(ROWS)
    with pytest.raises(AlignmentError, match=r"dataset: .*\['train'\]"):
        EntitySet.from_dataset(datasets.DatasetDict({"train": flat}))


# --- parts -----------------------------------------------------------------------------------------------------


def test_overlap_and_without():
    a = EntitySet([Entity("New York", "city", {}, ("NYC",)), Entity("Rome", "city"), Entity("Oslo", "city")])
    b = EntitySet([Entity("Big Apple", "city", {}, ("nyc",)), Entity("ROME", "city"), Entity("Oslo", "song")])
    assert overlap(a, b) == ["New York", "Rome"]
    assert a.without(b).names == ["Oslo"]
    assert overlap(a.without(b), b) == []


def test_sample():
    entities = cities(50)
    chosen = entities.sample(10, seed=1)
    assert len(chosen) == 10
    assert chosen == entities.sample(10, seed=1) != entities.sample(10, seed=2)
    assert chosen.names == [name for name in entities.names if name in chosen.names]
    with pytest.raises(AlignmentError, match=r"n=51: .*50"):
        entities.sample(51)


def test_splits_are_disjoint_and_in_proportion():
    entities = cities(60) + EntitySet([Entity(f"s{i}", "song") for i in range(10)])
    parts = entities.split(0.5, 0.3, 0.2, seed=3)
    assert [(len(p.of_type("city")), len(p.of_type("song"))) for p in parts] == [(30, 5), (18, 3), (12, 2)]
    assert sorted(name for p in parts for name in p.names) == sorted(entities.names)
    assert parts == entities.split(0.5, 0.3, 0.2, seed=3)
    assert parts != entities.split(0.5, 0.3, 0.2, seed=4)
    assert [len(p) for p in entities.split(0.5, 0.2)] == [35, 14]
    backwards = EntitySet(reversed(entities)).split(0.5, 0.3, 0.2, seed=3)
    assert [set(p.names) for p in backwards] == [set(p.names) for p in parts]


def test_splits_keep_together_what_aliases_link():
    chains = [Entity(f"{c}{i}", "city", {}, (f"{c}{i + 1}",)) for c in "abcdefgh" for i in range(0, 6, 2)]
    linked = [Entity(f"{c}1", "city", {}, (f"{c}{3}", f"{c.upper()}5")) for c in "abcdefgh"]
    entities = EntitySet([*chains, *linked])
    parts = entities.split(0.5, 0.5)
    assert overlap(*parts) == []
    assert sum(map(len, parts)) == len(entities)
    assert all(len({name[0] for name in part.names}) == 4 for part in parts)


@pytest.mark.parametrize("fractions", [(), (0.5, -0.1), (0.7, 0.4), (0.0, 1.0)])
def test_splits_that_make_no_sense(fractions):
    with pytest.raises(AlignmentError, match="fractions="):
        cities(4).split(*fractions)


COLUMNS = {"name": "entity", "nation": "country", "id": None}


def test_columns_of_a_file_are_mapped(tmp_path):
    rows = [
        {"id": "1", "name": "Paris", "nation": "France", "aliases": "Paname|City of Light", "founded": "250"},
        {"id": "2", "name": "Oslo", "nation": "Norway|Norge", "aliases": "", "founded": ""},
    ]
    expected = EntitySet(
        [
            Entity("Paris", "city", {"country": ("France",), "founded": ("250",)}, ("Paname", "City of Light")),
            Entity("Oslo", "city", {"country": ("Norway", "Norge")}),
        ]
    )
    path = tmp_path / "cities.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader(), writer.writerows(rows)
    assert EntitySet.from_file(path, "city", columns=COLUMNS) == expected
    for row in rows:
        row |= {key: row[key].split("|") for key in ("nation", "aliases", "founded")}
    assert EntitySet.from_dataset(rows, "city", columns=COLUMNS) == expected
    for name, text in (
        ("cities.json", json.dumps(rows)),
        ("cities.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
    ):
        (tmp_path / name).write_text(text)
        assert EntitySet.from_file(tmp_path / name, "city", COLUMNS) == expected


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"nmae": "entity"}, r"^columns='nmae': .*entity, nation"),
        ({"nation": "entity"}, r"^columns='entity': .*got two"),
        ({"nation": 3}, r"^columns=\{'nation': 3\}: "),
        ("nation", "^columns='nation': "),
        ({"entity": "name"}, r"'entity' and 'entity_type'.*columns="),
    ],
)
def test_columns_that_cannot_be_mapped(columns, complaint):
    with pytest.raises(AlignmentError, match=complaint):
        EntitySet.from_dataset([{"entity": "Paris", "nation": "France"}], "city", columns)
