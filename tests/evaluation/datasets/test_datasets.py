"""Readers of published data sets: on small folders in the published layouts, and on the real ones where they are.

The tests of the real data run only where the environment variable SAE_UNLEARN_DATA names a folder with `tofu/`, `mmlu/`
and `relations/`.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from hub_repositories import Repository

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Choice, Fact
from sae_unlearn.evaluation.datasets import (
    mmlu_choices,
    muse_facts,
    muse_passages,
    muse_texts,
    read_named,
    read_questions,
    relation_facts,
    rwku_facts,
    tofu_choices,
    tofu_facts,
    wmdp_choices,
)


DATA = os.environ.get("SAE_UNLEARN_DATA")
real = pytest.mark.skipif(not DATA, reason="needs SAE_UNLEARN_DATA")

TOFU = [
    {
        "question": f"Who is author {i}?",
        "answer": f"It is {i}.",
        "paraphrased_answer": f"The name is {i}.",
        "perturbed_answer": ["It is Ann.", "It is Bob.", "It is Ann."],
    }
    for i in range(40)
]
EXAM = [
    {"question": "Which is a gas?", "choices": ["iron", "neon", "salt", "wood"], "answer": 1},
    {"question": "Twice the same", "choices": ["iron", "iron", "salt", "wood"], "answer": 1},
]
NEON = Choice("Which is a gas?", ("iron", "neon", "salt", "wood"), 1)


def write(path, rows, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_tofu(tmp_path, lines):
    write(tmp_path / "forget10.json", TOFU, lines)
    facts = tofu_facts("forget10", str(tmp_path))
    assert facts[21] == Fact("Question: Who is author 21?\nAnswer:", ("It is 21.",), "forget10 author 1")
    choices = tofu_choices("forget10", str(tmp_path))
    assert choices[3] == Choice(
        "Question: Who is author 3?",
        ("The name is 3.", "It is Ann.", "It is Bob."),
        0,
        "forget10 author 0",
        shown=False,
    )


def test_tofu_as_the_hub_has_it(tmp_path):
    write(tmp_path / "retain.json", [{"question": "q?", "answer": "a"}])
    with pytest.raises(UnlearnError, match="retain_perturbed"):
        tofu_choices("retain", str(tmp_path))
    rows = [{"question": "Where is Rome?", "answer": "Italy", "perturbed_answer": ["Spain", "Italy"]}]
    write(tmp_path / "world_facts_perturbed.json", rows)
    assert tofu_choices("world_facts", str(tmp_path)) == [
        Choice("Question: Where is Rome?", ("Italy", "Spain"), 0, shown=False)
    ]
    assert tofu_facts("world_facts", str(tmp_path))[0].subject == ""


def test_muse(tmp_path):
    write(tmp_path / "knowmem" / "forget_qa.json", [{"question": "Who spoke?", "answer": "Ann"}])
    write(tmp_path / "verbmem" / "forget.json", [{"prompt": "It was ", "gt": " a dark night"}])
    write(tmp_path / "raw" / "retain1.json", [{"text": "News."}])
    assert muse_facts("forget_qa", str(tmp_path)) == [Fact("Question: Who spoke?\nAnswer:", ("Ann",))]
    assert muse_passages("forget", str(tmp_path)) == [Fact("It was", ("a dark night",))]
    assert muse_texts("retain1", str(tmp_path)) == ["News."]
    with pytest.raises(FileNotFoundError, match=r"source=.*raw/forget\.json"):
        muse_texts("forget", str(tmp_path))


def test_wmdp(tmp_path):
    write(tmp_path / "bio_questions.json", EXAM)
    assert wmdp_choices("bio", str(tmp_path)) == wmdp_choices("wmdp-bio", str(tmp_path)) == [NEON]


def test_parquet_as_the_hub_has_it(tmp_path):
    datasets = pytest.importorskip("datasets", reason='needs the extra: pip install ".[eval]"')
    (tmp_path / "wmdp-cyber").mkdir()
    datasets.Dataset.from_list(EXAM).to_parquet(tmp_path / "wmdp-cyber" / "test-00000-of-00001.parquet")
    assert wmdp_choices("cyber", str(tmp_path)) == [NEON]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "test/physics_test.csv",
            "question,choice0,choice1,choice2,choice3,answer\nWhich is a gas?,iron,neon,salt,wood,1",
        ),
        ("data/test/physics_test.csv", "Which is a gas?,iron,neon,salt,wood,B"),
    ],
)
def test_mmlu(tmp_path, name, lines):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(lines)
    assert mmlu_choices("physics", str(tmp_path)) == [NEON]


@pytest.mark.parametrize("answer", ["E", "4", "", "AB", None, -1])
def test_an_answer_that_is_no_option_is_named(tmp_path, answer):
    write(tmp_path / "physics" / "test.json", [EXAM[0] | {"answer": answer}])
    with pytest.raises(UnlearnError, match=r"^answer=.*'Which is a gas\?'.* 0 to 3"):
        mmlu_choices("physics", str(tmp_path))


def test_rwku(tmp_path):
    row = {"query": "Ann was born in ___.", "answer": "Rome", "level": "1", "type": "cloze", "subject": "Ann"}
    write(tmp_path / "All" / "forget_level1.json", [row, row | {"subject": "Bob"}])
    prompt = "Please complete the blank in the following question.\nQuestion: Ann was born in ___.\nAnswer:"
    assert rwku_facts("forget_level1", str(tmp_path), ["Ann"]) == [Fact(prompt, ("Rome",), "Ann")]
    assert len(rwku_facts("forget_level1", str(tmp_path))) == 2
    with pytest.raises(UnlearnError, match=r"people=\["):
        rwku_facts("forget_level1", str(tmp_path), ["Eve"])
    write(tmp_path / "forget_level2.json", [row])
    assert rwku_facts("forget_level2", str(tmp_path))[0].prompt.startswith("Please briefly answer")


def test_relations(tmp_path):
    samples = [{"subject": "Mali", "object": "French"}, {"subject": "Mali", "object": "Bambara"}]
    stored = {"prompt_templates": ["In {}, they speak"], "prompt_templates_zs": ["{} speaks"], "samples": samples}
    write(tmp_path / "data" / "factual" / "language.json", stored)
    assert relation_facts("language", str(tmp_path)) == [Fact("Mali speaks", ("French", "Bambara"), "Mali")]
    assert relation_facts("language", str(tmp_path), zero_shot=False)[0].prompt == "In Mali, they speak"
    with pytest.raises(UnlearnError, match="template=1"):
        relation_facts("language", str(tmp_path), template=1)
    with pytest.raises(FileNotFoundError, match=r"source=.*capital\.json"):
        relation_facts("capital", str(tmp_path))
    write(tmp_path / "broken.json", {"samples": []})
    with pytest.raises(UnlearnError, match=r"/broken\.json: "):
        relation_facts("broken", str(tmp_path))


def test_the_hub_is_asked_where_there_is_no_folder(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return EXAM

    datasets = pytest.importorskip("datasets", reason='needs the extra: pip install ".[eval]"')
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert wmdp_choices("bio", revision="abc") == mmlu_choices("virology", "me/exams", split="dev") == [NEON]
    assert asked == [
        (("cais/wmdp", "wmdp-bio"), {"split": "test", "revision": "abc"}),
        (("me/exams", "virology"), {"split": "dev", "revision": None}),
    ]


READERS = [tofu_facts, tofu_choices, muse_facts, muse_passages, muse_texts, wmdp_choices, rwku_facts]


def test_relations_of_the_hub_are_of_the_revision_that_is_asked_for(stand_in):
    repository = stand_in.repositories["me/relations"] = Repository("me/relations")
    stored = {"prompt_templates": ["{} speaks"], "samples": [{"subject": "Mali", "object": "French"}]}
    old = repository.commit("main", "old", {"data/factual/language.json": json.dumps(stored).encode()}).oid
    stored["samples"][0]["object"] = "Bambara"
    repository.commit("main", "new", {"data/factual/language.json": json.dumps(stored).encode(), "x.json": b"1"})
    assert relation_facts("language", "me/relations") == [Fact("Mali speaks", ("Bambara",), "Mali")]
    assert relation_facts("language", "me/relations", revision=old)[0].answers == ("French",)
    assert not [path for _, path in stand_in.requests if "x.json" in path]
    for wrong in ({"relation": "capital"}, {"source": "me/absent"}, {"revision": "absent"}):
        with pytest.raises(FileNotFoundError, match=wrong.get("relation", "source=")):
            relation_facts(**({"relation": "language", "source": "me/relations"} | wrong))


def test_a_folder_has_no_revisions(tmp_path):
    write(tmp_path / "language.json", [])
    write(tmp_path / "physics" / "test.json", EXAM)
    for read in (
        lambda **kwargs: relation_facts("language", str(tmp_path), **kwargs),
        lambda **kwargs: mmlu_choices("physics", str(tmp_path), **kwargs),
    ):
        with pytest.raises(UnlearnError) as caught:
            read(revision="main")
        assert caught.value.subject == "revision"


@pytest.mark.parametrize("reader", [*READERS, lambda source: mmlu_choices("x", source), relation_facts])
def test_what_is_nowhere_is_said(reader, tmp_path, monkeypatch):
    arguments = {"relation": "x"} if reader is relation_facts else {}
    with pytest.raises(FileNotFoundError, match="source='nobody/nothing'"):
        reader(**arguments, source="nobody/nothing")  # offline, so the Hub has nothing
    if reader is not relation_facts:
        with pytest.raises(FileNotFoundError, match=r"^source='.*/nothing'"):
            reader(source=str(tmp_path / "nothing"))
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ImportError, match=r"\[eval\]"):
            reader(source="nobody/nothing")


def test_rows_without_their_fields_are_refused(tmp_path):
    write(tmp_path / "forget10.json", [{"query": "q"}])
    with pytest.raises(UnlearnError, match=r"'question'.*query"):
        tofu_facts("forget10", str(tmp_path))
    (tmp_path / "forget10.json").write_text("{")
    with pytest.raises(UnlearnError, match=r"forget10\.json: .*JSON"):
        tofu_facts("forget10", str(tmp_path))
    write(tmp_path / "forget10.json", ["q"])
    with pytest.raises(UnlearnError, match=r"forget10\.json: .*objects"):
        tofu_facts("forget10", str(tmp_path))
    write(tmp_path / "bio_questions.json", [{"question": "q"}])
    with pytest.raises(UnlearnError, match="a list `choices`"):
        wmdp_choices("bio", str(tmp_path))


def test_sets_by_name(tmp_path):
    write(tmp_path / "bio_questions.json", EXAM)
    assert read_named(f"wmdp:bio@{tmp_path}") == [NEON]
    for name, said in (
        ("wmpd:bio", "kind='wmpd': .*Did you mean 'wmdp'"),
        ("wmdp:", "name='wmdp:'"),
        ("wmdp:bio@", "name='wmdp:bio@'"),
        ("relation:x", "name='relation:x'"),
    ):
        with pytest.raises(UnlearnError, match=said):
            read_named(name)


def test_a_users_own_questions(tmp_path):
    facts = [
        {"prompt": "Rome is in ", "answers": ["Italy", "Europe"], "subject": "Rome"},
        {"prompt": "A", "answer": "B"},
    ]
    assert read_questions(write(tmp_path / "facts.jsonl", facts, lines=True)) == [
        Fact("Rome is in", ("Italy", "Europe"), "Rome"),
        Fact("A", ("B",)),
    ]
    exam = [EXAM[0] | {"subject": "gases"}]
    assert read_questions(write(tmp_path / "exam.json", exam)) == [Choice(NEON.question, NEON.options, 1, "gases")]
    assert read_questions(write(tmp_path / "texts.json", ["a text"])) is None
    assert read_questions(write(tmp_path / "rows.json", [{"text": "a text"}])) is None
    assert read_questions(tmp_path / "texts.txt") is None
    with pytest.raises(UnlearnError, match="answers=3"):
        read_questions(write(tmp_path / "bad.json", [{"prompt": "A", "answer": 3}]))


def test_questions_as_editors_and_other_programs_write_them(tmp_path):
    row = json.dumps({"prompt": "A\u2028B", "answer": "C"}, ensure_ascii=False)  # a line's end to Python, not to JSON
    (tmp_path / "facts.jsonl").write_text(f"{row}\n{row}", encoding="utf-8-sig")
    assert read_questions(tmp_path / "facts.jsonl") == [Fact("A\u2028B", ("C",))] * 2


@real
def test_real_tofu():
    facts, choices = (reader("forget10", f"{DATA}/tofu") for reader in (tofu_facts, tofu_choices))
    assert len(facts) == len(choices) == 400
    assert len({fact.subject for fact in facts}) == 20
    assert len(tofu_facts("retain95", f"{DATA}/tofu")) == 3800
    for subset, n in (("real_authors", 100), ("world_facts", 117)):
        found = tofu_choices(subset, f"{DATA}/tofu")
        assert len(found) == n
        assert all(choice.right == 0 and not choice.shown for choice in found)


@real
def test_real_mmlu():
    for path in (Path(DATA) / "mmlu" / "test").glob("*.csv"):
        found = mmlu_choices(path.stem.removesuffix("_test"), f"{DATA}/mmlu")
        assert len(found) >= 99
        assert all(len(choice.options) == 4 for choice in found)
    assert len(mmlu_choices("virology", f"{DATA}/mmlu", split="dev")) == 5


@real
def test_real_relations():
    names = [path.stem for path in Path(DATA).glob("relations/data/*/*.json")]
    assert len(names) == 47
    for name in names:
        found = relation_facts(name, f"{DATA}/relations")
        assert found
        assert all(fact.subject in fact.prompt and fact.prompt == fact.prompt.rstrip() for fact in found)
