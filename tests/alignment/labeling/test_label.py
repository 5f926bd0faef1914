"""Which entities a model knows: labels, answers and what is saved of them."""

import copy
import json
from pathlib import Path

import pytest
from labeled_words import QUESTIONS, label, words
from peft import LoraConfig, get_peft_model
from small_tokenizers import byte_level, word_level
from zoo import base_model

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling import label as labeling
from sae_unlearn.alignment.labeling.label import LabelingRule, _default_min_known, label_entities
from sae_unlearn.alignment.labeling.result import LabeledEntities
from sae_unlearn.answer_matching import AnswerMatcher
from sae_unlearn.errors import AlignmentError


def test_labels_and_answers():
    model = base_model("llama").train()
    labeled = label(model)
    assert model.training
    parts = (labeled.known, labeled.unknown, labeled.dropped)
    assert sorted(name for part in parts for name in part.names) == sorted(words().names)
    assert all(len(part) > 0 for part in parts[::2])
    assert len(labeled.answers) == 12 * 3
    about = labeled.answers_about(words()[1])
    assert [asked.prompt for asked in about] == ["w5 w41", "w41 w6 w7", "w41 w8"]
    assert [asked.attribute for asked in about] == ["next", "last", "last"]
    for asked in labeled.answers:
        assert len(asked.answers) == 10
        assert asked.matches == sum(map(AnswerMatcher(asked.accepted).matches, asked.answers))
    rule = LabelingRule()
    for entity in words():
        matches = {}
        for asked in labeled.answers_about(entity):
            matches.setdefault(asked.attribute, []).append(asked.matches)
        assert entity in getattr(labeled, rule.label(matches))
    summary = labeled.summary()["word"]
    assert [summary[name] for name in ("known", "unknown", "dropped")] == [len(part) for part in parts]
    rate = sum(a.matches for a in labeled.answers if a.attribute == "next") / 120
    assert summary["attributes"]["next"]["match_rate"]["all"] == rate
    assert summary["attributes"]["last"]["questions"] == 24


@pytest.mark.slow
def test_the_same_whatever_the_batches_and_the_order():
    expected = label()
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"candidates": EntitySet(reversed(words()))}):
        found = label(**options)
        assert {a.question: a for a in found.answers} == {a.question: a for a in expected.answers}
    assert {a.answers for a in label(seed=1).answers} != {a.answers for a in expected.answers}


def test_greedy():
    labeled = label(samples=1, temperature=0, min_matches=1)
    assert all(len(asked.answers) == 1 for asked in labeled.answers)
    assert labeled.answers == label(samples=1, temperature=0, min_matches=1, seed=5).answers


def test_candidates_with_one_attribute_each_are_known_by_it(caplog):
    quick = {"samples": 1, "temperature": 0, "min_matches": 1}
    labeled = label(candidates=words(attributes=("next",)), **quick)
    assert labeled.settings["min_known"] == 1
    assert "min_known=1" in caplog.text
    assert label(candidates=words(), **quick).settings["min_known"] == 2
    with pytest.raises(AlignmentError, match=r"min_known=2: .*1 of 3 candidates"):
        label(candidates=words(2) + EntitySet([Entity("w60", "word", {"next": ("w61",)})]), **quick)


def test_the_example_s_cities_meet_the_default():
    cities = EntitySet.from_file(Path(__file__).parents[3] / "examples" / "cities.csv")
    assert _default_min_known(cities) <= min(len(city.attributes) for city in cities)


def test_a_known_and_an_unknown_entity():
    """A model that repeats what comes before: it knows the words that are their own answer."""
    model = base_model("llama")
    greedy = {
        "samples": 1,
        "temperature": 0,
        "min_matches": 1,
        "min_known": 1,
        "questions": {"word": {"next": "{entity}"}},
    }
    said = label(model, words(attributes=("next",)), **greedy).answers
    truth = {asked.entity: asked.answers[0].split()[0] for asked in said}
    knows = EntitySet(Entity(name, "word", {"next": (answer,)}) for name, answer in list(truth.items())[:6])
    wrong = EntitySet(Entity(name, "word", {"next": (answer + "0",)}) for name, answer in list(truth.items())[6:])
    labeled = label(model, knows + wrong, **greedy)
    assert (labeled.known, labeled.unknown, len(labeled.dropped)) == (knows, wrong, 0)


def test_special_tokens_that_close_a_text_are_left_off():
    row = labeling._row(word_level(), labeling.Prompt("New York", 0, 8), chat_template=False)
    assert word_level().convert_ids_to_tokens(row) == ["<bos>", "New", "York"]


def test_chat():
    model = base_model("llama")
    model.resize_token_embeddings(len(byte_level()))
    found = label_entities(
        model, byte_level(), words(2), questions=QUESTIONS, chat_template=True, max_new_tokens=2, progress=False
    )
    row = labeling._row(byte_level(), labeling.Prompt("w5", 0, 2), chat_template=True)
    assert byte_level().decode(row) == "<start>user\nw5<end>\n<start>model\n"
    assert len(found.answers) == 6


def test_adapters_stay_as_they_are():
    base = base_model("llama")
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    )
    plain, tuned = label(base), label(model)
    assert [a.answers for a in tuned.answers] != [a.answers for a in plain.answers]
    with model.disable_adapter():
        assert [a.answers for a in label(model).answers] == [a.answers for a in plain.answers]


def test_saving(tmp_path):
    labeled = label()
    labeled.save(tmp_path / "labels")
    assert LabeledEntities.load(tmp_path / "labels") == labeled
    assert EntitySet.from_file(tmp_path / "labels" / "known.json") == labeled.known
    assert json.loads((tmp_path / "labels" / "summary.json").read_text()) == labeled.summary()
    with pytest.raises(AlignmentError, match=r"^folder=.*got "):
        LabeledEntities.load(tmp_path)
