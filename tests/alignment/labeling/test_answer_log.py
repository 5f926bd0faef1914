"""Labeling runs that were cut go on, and files of others are not written over."""

import pytest
from labeled_words import label, words
from zoo import base_model

from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling import label as labeling
from sae_unlearn.alignment.labeling.sampling import sample_continuations
from sae_unlearn.errors import AlignmentError


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

    monkeypatch.setattr(labeling, "sample_continuations", counting)
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
