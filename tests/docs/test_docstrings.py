"""Docstrings of the public contract say type and default of every argument, what is returned, and the errors.

Ruff's D417, DOC201 and DOC501 hold no part of this: they do not read `known, unknown: entities`, pass a docstring
without an `Args:` section, and know neither the public names nor the defaults.
"""

import inspect
from typing import Any

import pytest
from docstrings import Public, constructor, entries, parameters, public, raises, sections, wrong_entry


FOUND = public()
CALLS = [pytest.param(each, id=name) for name, each in FOUND.items() if each.call is not None]


@pytest.mark.parametrize("each", FOUND.values(), ids=FOUND.keys())
def test_everything_public_has_a_docstring(each: Public) -> None:
    assert each.doc
    assert len(each.doc.split("\n")[0]) <= 100


@pytest.mark.parametrize("each", CALLS)
def test_every_argument_has_its_type_and_default(each: Public) -> None:
    told = entries(each.doc)
    wrong = [wrong_entry(parameter, told.get(parameter.name)) for parameter in parameters(each.call)]
    assert not [one for one in wrong if one]


@pytest.mark.parametrize("each", CALLS)
def test_no_argument_is_described_that_there_is_not(each: Public) -> None:
    if not inspect.isclass(each.call):  # a class has attributes, too
        assert set(entries(each.doc)) <= {parameter.name for parameter in parameters(each.call)}


@pytest.mark.parametrize("each", CALLS)
def test_what_is_returned_is_said(each: Public) -> None:
    """In a section, or in the words of the summary. A classmethod that returns its own class needs neither."""
    if inspect.isclass(each.call):
        return
    result = inspect.signature(each.call).return_annotation
    if result in (None, "None", inspect.Signature.empty):
        return
    if str(result).strip("'\"").rpartition(".")[2] in (each.name.partition(".")[0], "Self"):
        return
    assert {"Returns:", "Yields:"} & set(sections(each.doc)) or "return" in each.doc.partition("\n\n")[0].lower()


@pytest.mark.parametrize("each", CALLS)
def test_errors_are_said(each: Public) -> None:
    called = constructor(each.call) if inspect.isclass(each.call) else inspect.unwrap(each.call)
    assert not raises(called) or "Raises:" in sections(each.doc)


def test_the_whole_contract_is_looked_at() -> None:
    assert len(CALLS) > 200
    assert {"EntitySet.from_csv", "SparseAutoencoder.save_pretrained", "Separation.to_dict"} <= set(FOUND)


def sample(a: int, *rest: str, b: float = 0.5, c: str | None = None, **more: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "entry", "fault"),
    [
        ("a", "a (int): Number.", None),
        ("a", "b (int): Number.", "no entry"),
        ("a", "a: Number.", "no type"),
        ("a", "a (int, *optional*): Number.", "*optional*"),
        ("rest", "rest (str): Words.", None),
        ("b", "b (float, *optional*, defaults to 0.5): Share.", None),
        ("b", "c, b (float, *optional*, defaults to 0.5): Shares.", None),
        ("b", "b (float, *optional*, defaults to\n        0.5): Share.", None),
        ("b", "b (float, *optional*, defaults to 0.6): Share.", "0.5"),
        ("b", "b (float): Share.", "*optional*"),
        ("c", "c (str, *optional*): Word.", None),
        ("c", "c (str, *optional*, defaults to the model's): Word.", None),
        ("more", "more: Others.", None),
        ("more", "other: Others.", "no entry"),
    ],
)
def test_a_wrong_entry_is_found(name: str, entry: str, fault: str | None) -> None:
    found = entries(f"Do it.\n\nArgs:\n    {entry}\n\nReturns:\n    {name} (str): No argument.")
    wrong = wrong_entry(inspect.signature(sample).parameters[name], found.get(name))
    assert (wrong is None) if fault is None else (wrong is not None and fault in wrong)


ONE_WAY = {
    "Separation.to_dict": "numbers of a trainer, for its card",
    "Solution.to_dict": "numbers of a trainer, for its log",
    "PublishedSAE.to_dict": "a row of a table",
    "GuardrailPicture.save": "a page for people",
    "GuardedModel.push_to_hub": "`attach_guardrail` reads it",
    "GuardedModel.save_pretrained": "`attach_guardrail` reads it",
    "SAEAlignmentTrainer.push_to_hub": "`PeftModel.from_pretrained` reads it",
}
"""Methods without their other half, and why."""


def test_verbs_stand_in_pairs() -> None:
    halves = {
        "to_dict": ("from_dict",),
        "to_json": ("from_json",),
        "save": ("load",),
        "load": ("save",),
        "save_pretrained": ("from_pretrained",),
        "push_to_hub": ("from_pretrained",),
        "from_pretrained": ("save_pretrained", "push_to_hub"),
        "from_dict": ("to_dict",),
    }
    alone = set()
    for name in FOUND:
        home, _, verb = name.partition(".")
        alone |= {name for other in halves.get(verb, ()) if f"{home}.{other}" not in FOUND}
    assert alone == set(ONE_WAY)
