"""Which entities a model knows: the rule, what counts as an answer, sampling, and runs that were cut."""

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_tokenizers import byte_level, word_level
from tiny_topic import tiny_tokenizer
from torch import nn
from transformers import GenerationConfig
from zoo import EOS, ZOO, base_model

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labelling import label as labelling
from sae_unlearn.alignment.labelling.label import LabellingRule, _default_min_known, label_entities
from sae_unlearn.alignment.labelling.result import LabelledEntities
from sae_unlearn.alignment.labelling.sampling import sample_continuations
from sae_unlearn.answer_matching import AnswerMatcher
from sae_unlearn.backbone.identity import model_key
from sae_unlearn.errors import AlignmentError


QUESTIONS = {"word": {"next": "w5 {entity}", "last": ("{entity} w6 w7", "{entity} w8")}}


def words(number=12, attributes=("next", "last"), accepted=tuple(f"w{i}" for i in range(2, 40))):
    """Entities whose names are words of `tiny_tokenizer`; about four in ten random words are an accepted answer."""
    return EntitySet(Entity(f"w{40 + i}", "word", dict.fromkeys(attributes, accepted)) for i in range(number))


def label(model=None, candidates=None, **options):
    options = {"questions": QUESTIONS, "progress": False, "max_new_tokens": 3} | options
    return label_entities(model or base_model("llama"), tiny_tokenizer(), candidates or words(), **options)


# --- the rule --------------------------------------------------------------------------------------------------


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
    assert LabellingRule().label(matches) == expected


def test_every_question_of_an_attribute_counts():
    rule = LabellingRule(min_known=1)
    assert rule.label({"a": [3, 3]}) == "known"
    assert rule.label({"a": [10, 2]}) == "dropped"  # neither right nor wrong
    assert rule.label({"a": [2, 2]}) == "unknown"


def test_thresholds():
    strict = LabellingRule(min_known=1, max_wrong_matches=0)
    assert [strict.label({"a": [n]}) for n in (0, 1, 2, 3)] == ["unknown", "dropped", "dropped", "known"]
    loose = LabellingRule(min_known=3, max_unknown=1, min_matches=5, max_wrong_matches=4)
    assert loose.label({"a": [5], "b": [4], "c": [4]}) == "unknown"
    assert loose.label({"a": [5], "b": [5], "c": [4]}) == "dropped"
    assert loose.label({"a": [5], "b": [5], "c": [5]}) == "known"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"samples": 0}, "samples=0"),
        ({"samples": 1}, r"min_matches=3: expected 1 to samples=1.*pass min_matches=1"),
        ({"max_wrong_matches": 3}, "max_wrong_matches=3: expected 0 to 2"),
        ({"min_known": 0}, "min_known=0"),
        ({"min_known": 1, "max_unknown": 1}, "0 <= max_unknown < min_known"),
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
    with pytest.raises(AlignmentError, match=r"min_known=2: .*12 of 12 .*'w40' with \['next'\].*Pass min_known=1"):
        label(candidates=words(attributes=("next",)), min_known=2)
    some = words(2) + EntitySet([Entity("w60", "word")])
    with pytest.raises(AlignmentError, match=r"min_known=1: .*1 of 3 candidates .*'w60' with \[\]"):
        label(candidates=some, min_known=1)


# --- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" France.", "France", True),
        (" FRANCE", "france", True),
        (" Frances", "France", False),
        (" in France", "France", False),
        (' the "Netherlands"', "Netherlands", True),
        (" the Hague", "The Hague", True),
        ("\n United\n  States of", "United States", True),
        (" Guinea-Bissau", "Guinea", False),
        (" Guinea - a", "Guinea", True),
        (" Guinea-", "Guinea", True),
        (" Côte d'Ivoire,", "Côte d'Ivoire", True),
        (" Co\u0302te d'Ivoire", "Côte d'Ivoire", True),
        (" Cote d'Ivoire", "Côte d'Ivoire", False),
        (" Straße", "STRASSE", True),
        (" 1979.", "1979", True),
        (" 19790", "1979", False),
        (" 1.5 million", "1", False),
        (" Peru\u0301", "Peru", False),
        (" 日本 です", "日本", True),
        (" U.S. troops", "U.S.", True),
        ("", "France", False),
    ],
)
def test_an_answer_at_the_beginning(text, answer, right):
    assert AnswerMatcher(["nothing", answer]).matches(text) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [("It lies in France, I think", True), ("france", True), ("San Francesco", False), ("", False), ("1France", False)],
)
def test_an_answer_somewhere(text, right):
    assert AnswerMatcher(["France"], "contains").matches(text) == right


def test_accents():
    assert AnswerMatcher(["Malmö"], ignore_accents=True).matches("Malmo")
    assert AnswerMatcher(["Malmo"], ignore_accents=True).matches("Malmö,")


TEXTS = (
    " France. It is",
    " the United States of America",
    " United Kingdom",
    ' "The U.S. and',
    " Guinea-Bissau is",
    " Guinea - a",
    " 1979.5 or 1979",
    " Co\u0302te d'Ivoire",
    " a city in France, and",
    "\n\nA: France",
    " Francesco of the Netherlands",
)
ACCEPTED = ("France", "United States", "U.S.", "The Netherlands", "Guinea", "1979", "Côte d'Ivoire", "a")


@pytest.mark.parametrize("how", ["begins", "contains"])
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_settled_stays_so(how, text):
    """Cut anywhere: once settled, whatever is appended gives the same answer."""
    for answer in ACCEPTED:
        matcher = AnswerMatcher([answer], how)
        settled = [matcher.settled(text[:end]) for end in range(len(text) + 1)]
        for end in range(len(text) + 1):
            if settled[end]:
                assert all(settled[end:])
                assert {matcher.matches(text[:later]) for later in range(end, len(text) + 1)} == {matcher.matches(text)}
                for more in ("x", "1", ".5", " of", "-y", "\u0301", ","):
                    assert matcher.matches(text[:end] + more) == matcher.matches(text)


def test_wrong_answers_are_settled_after_a_word():
    matcher = AnswerMatcher(["United States", "France"])
    assert matcher.settled(" Germany is")
    assert matcher.settled(" Germany,")
    assert matcher.settled(" United Kingdom.")
    assert matcher.settled(" France,")
    assert not any(
        matcher.settled(text) for text in ("", " ", " Ger", " the ", " United ", " United States ", " France")
    )
    assert AnswerMatcher(["France"], "contains").settled("It is France,")
    assert not AnswerMatcher(["France"], "contains").settled("It is Germany,")


# --- sampling --------------------------------------------------------------------------------------------------


def sampled(model, rows, tokenizer=None, finished=lambda i, text: False, **options):
    options = {"samples": 4, "temperature": 1.0, "max_new_tokens": 5, "seeds": range(len(rows))} | options
    return sample_continuations(model, tokenizer or tiny_tokenizer(), rows, finished=finished, **options)


ROWS = [[1, 5, 6, 7, 8, 9], [1, 40], [1, 30, 31], [1, 12, 13, 14]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_greedy_is_what_generate_gives(name):
    """Through left padding, shared caches and rows that leave."""
    model, tokenizer = base_model(name), tiny_tokenizer()
    expected = []
    for row in ROWS:
        out = model.generate(torch.tensor([row]), max_new_tokens=5, do_sample=False, pad_token_id=0)
        written = out[0, len(row) :].tolist()
        written = written[: written.index(EOS)] if EOS in written else written  # the tokenizer's, which ends a sample
        expected.append(tokenizer.decode(written, skip_special_tokens=True))
    assert sampled(model, ROWS, samples=1, temperature=0) == [[text] for text in expected]
    short = sampled(model, ROWS, samples=2, temperature=0, finished=lambda i, text: len(text.split()) > i)
    assert short == [[" ".join(text.split()[: i + 1])] * 2 for i, text in enumerate(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "falcon_h1", "mamba"])
def test_samples_hang_on_their_own_seed_only(name):
    model = base_model(name)
    together = sampled(model, ROWS)
    for i, row in enumerate(ROWS):
        assert sampled(model, [row], seeds=[i]) == [together[i]]
    assert sampled(model, ROWS[::-1], seeds=[3, 2, 1, 0]) == together[::-1]
    assert len({text for texts in together for text in texts}) > 12
    ended = sampled(model, ROWS, finished=lambda i, text: text.endswith(("1", "3", "5", "7")))
    for texts, whole in zip(ended, together, strict=True):
        assert all(long.startswith(short) for short, long in zip(texts, whole, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_softmax(temperature):
    """Whatever the generation config says of top-k."""
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    model.generation_config = GenerationConfig(top_k=2, temperature=0.1, do_sample=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
        expected = (model(torch.tensor([ROWS[0]])).logits[0, -1] / temperature).softmax(dim=0)
    number = 20_000
    texts = sampled(model, [ROWS[0]], samples=number, temperature=temperature, max_new_tokens=1)[0]
    counts = Counter(texts)
    for token in expected.topk(8).indices:
        share, p = counts[tokenizer.decode([token])] / number, expected[token].item()
        assert abs(share - p) < 4.5 * (p * (1 - p) / number) ** 0.5  # standard errors


def test_samples_end_at_the_end_token():
    model = base_model("llama")
    first = model.generate(torch.tensor([ROWS[0]]), max_new_tokens=2, do_sample=False, pad_token_id=0)[0, -2:].tolist()
    model.generation_config.eos_token_id = [95, first[1]]
    text = sampled(model, ROWS[:1], samples=1, temperature=0)[0][0]
    assert text == tiny_tokenizer().decode(first)


def test_characters_of_several_tokens():
    """Half of a character is never judged, nor given back."""
    tokenizer = byte_level()
    seen = []

    class Says(nn.Module):
        """Writes a fixed text."""

        def __init__(self, text):
            super().__init__()
            self.embedding, self.ids = nn.Embedding(2, 2), tokenizer(text).input_ids

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, len(tokenizer))
            logits[:, -1, self.ids[input_ids.shape[1] - 2]] = 50.0
            return type("Out", (dict,), {"logits": logits})()

    options = {"samples": 1, "temperature": 0, "tokenizer": tokenizer}
    texts = sampled(Says("鳥取 x"), [[0, 1]], finished=lambda i, text: seen.append(text), max_new_tokens=5, **options)
    assert texts == [["鳥"]]
    assert seen[2:4] == ["鳥", "鳥"]


def test_logits_that_are_not_finite():
    model = base_model("llama")
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(AlignmentError, match="logits: expected finite"):
        label(model)


# --- labelling -------------------------------------------------------------------------------------------------


def test_labels_and_answers():
    model = base_model("llama").train()
    labelled = label(model)
    assert model.training
    parts = (labelled.known, labelled.unknown, labelled.dropped)
    assert sorted(name for part in parts for name in part.names) == sorted(words().names)
    assert all(len(part) > 0 for part in parts[::2])
    assert len(labelled.answers) == 12 * 3
    about = labelled.answers_about(words()[1])
    assert [asked.prompt for asked in about] == ["w5 w41", "w41 w6 w7", "w41 w8"]
    assert [asked.attribute for asked in about] == ["next", "last", "last"]
    for asked in labelled.answers:
        assert len(asked.answers) == 10
        assert asked.matches == sum(map(AnswerMatcher(asked.accepted).matches, asked.answers))
    rule = LabellingRule()
    for entity in words():
        matches = {}
        for asked in labelled.answers_about(entity):
            matches.setdefault(asked.attribute, []).append(asked.matches)
        assert entity in getattr(labelled, rule.label(matches))
    summary = labelled.summary()["word"]
    assert [summary[name] for name in ("known", "unknown", "dropped")] == [len(part) for part in parts]
    rate = sum(a.matches for a in labelled.answers if a.attribute == "next") / 120
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
    labelled = label(samples=1, temperature=0, min_matches=1)
    assert all(len(asked.answers) == 1 for asked in labelled.answers)
    assert labelled.answers == label(samples=1, temperature=0, min_matches=1, seed=5).answers


def test_candidates_with_one_attribute_each_are_known_by_it(caplog):
    quick = {"samples": 1, "temperature": 0, "min_matches": 1}
    labelled = label(candidates=words(attributes=("next",)), **quick)
    assert labelled.settings["min_known"] == 1
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
    labelled = label(model, knows + wrong, **greedy)
    assert (labelled.known, labelled.unknown, len(labelled.dropped)) == (knows, wrong, 0)


def test_special_tokens_that_close_a_text_are_left_off():
    row = labelling._row(word_level(), labelling.Prompt("New York", 0, 8), chat_template=False)
    assert word_level().convert_ids_to_tokens(row) == ["<bos>", "New", "York"]


def test_chat():
    model = base_model("llama")
    model.resize_token_embeddings(len(byte_level()))
    found = label_entities(
        model, byte_level(), words(2), questions=QUESTIONS, chat_template=True, max_new_tokens=2, progress=False
    )
    row = labelling._row(byte_level(), labelling.Prompt("w5", 0, 2), chat_template=True)
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
    labelled = label()
    labelled.save(tmp_path / "labels")
    assert LabelledEntities.load(tmp_path / "labels") == labelled
    assert EntitySet.from_file(tmp_path / "labels" / "known.json") == labelled.known
    assert json.loads((tmp_path / "labels" / "summary.json").read_text()) == labelled.summary()
    with pytest.raises(AlignmentError, match=r"folder=.*expected labeled entities"):
        LabelledEntities.load(tmp_path)


# --- runs that were cut ----------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(monkeypatch, batches):
    """Let the run be killed in the middle of a batch; returns how many prompts each batch had."""
    real, asked = sample_continuations, []

    def counting(model, tokenizer, rows, *args, **kwargs):
        if len(asked) == batches:
            raise Killed
        asked.append(len(rows))
        return real(model, tokenizer, rows, *args, **kwargs)

    monkeypatch.setattr(labelling, "sample_continuations", counting)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("torn", ["", '{"entity": "w40", "entity_ty', "\xff", "{}"])
def test_a_killed_run_goes_on(tmp_path, monkeypatch, torn):
    expected, cache = label(), tmp_path / "new" / "answers.jsonl"
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Killed):
            label(cache=cache, batch_size=5)
    lines = cache.read_text().splitlines()
    assert len(lines) == 1 + 15
    cache.write_bytes(cache.read_bytes() + torn.encode("latin-1"))
    with monkeypatch.context() as patch:
        asked = killed_after(patch, 99)
        assert label(cache=cache, batch_size=5) == expected
    assert sum(asked) == 36 - 15
    assert cache.read_text().splitlines()[:16] == lines
    with monkeypatch.context() as patch:
        killed_after(patch, 0)  # nothing is left to ask
        assert label(cache=cache) == expected
        assert label(cache=cache, min_known=1, max_wrong_matches=0).answers == expected.answers  # another rule will do


@pytest.mark.parametrize("left", [b"", b'{"fo', b'{"format": 1, "model'])
def test_a_run_killed_before_the_first_answer(tmp_path, left):
    (tmp_path / "a.jsonl").write_bytes(left)
    assert label(cache=tmp_path / "a.jsonl") == label()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 37


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"seed": 1}, "seed=0 and not 1"),
        ({"temperature": 0.7}, "temperature=1.0 and not 0.7"),
        ({"samples": 12}, "samples=10 and not 12"),
        ({"max_new_tokens": 4}, "max_new_tokens=3 and not 4"),
        ({"match": "contains"}, "match='begins' and not 'contains'"),
        ({"model": base_model("gpt2")}, "model='tiny-llama' and not 'tiny-gpt2'"),
    ],
)
def test_answers_of_other_settings_are_refused(tmp_path, options, differing):
    label(cache=tmp_path / "a.jsonl", candidates=words(2))
    before = (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(AlignmentError, match=f"cache=.*{differing}"):
        label(cache=tmp_path / "a.jsonl", **options)
    assert (tmp_path / "a.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["my notes", "my notes\n", "[1]\n", '{"a": 1}\n'])
def test_other_files_are_not_written_over(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(AlignmentError, match=r"a\.jsonl"):
        label(cache=tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == content


def test_a_broken_line_in_the_middle(tmp_path):
    label(cache=tmp_path / "a.jsonl", candidates=words(2))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], "{}", *lines[3:]]) + "\n")
    with pytest.raises(AlignmentError, match=r"cache=.*in line 4"):
        label(cache=tmp_path / "a.jsonl")


def test_other_accepted_answers_are_asked_anew(tmp_path, monkeypatch):
    label(cache=tmp_path / "a.jsonl", candidates=words(4))
    other = words(2) + EntitySet(Entity(e.entity, "word", {"next": ("w2",), "last": ("w3",)}) for e in words(4)[2:])
    asked = killed_after(monkeypatch, 9)
    assert label(cache=tmp_path / "a.jsonl", candidates=other).answers == label(candidates=other).answers
    assert asked[0] == 6


def test_the_key_of_a_model():
    base = base_model("llama")
    key = model_key(base)
    assert model_key(base_model("llama")) == key
    changed = base_model("llama")
    changed.model.layers[3].mlp.down_proj.weight.data.mul_(1.01)
    assert model_key(changed) != key
    assert model_key(base_model("llama").bfloat16()) != key
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    on = model_key(tuned)
    with tuned.disable_adapter():
        assert model_key(tuned) != on
