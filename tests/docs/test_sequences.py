"""The code of a page, run from top to bottom in one session, as somebody would who copies it: README and docs.

Code in running text counts as well, where it calls a function of this package on `model` with nothing left out. What is
exchanged is what `test_readme` exchanges; what a page takes for granted beyond that is in `GIVEN`, by page.
"""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pages import PAGES, ROOT, blocks_of
from test_readme import parts, readers_world
from tiny_topic import topic_texts

import sae_unlearn
from sae_unlearn import fit_guardrail


__all__ = ["readers_world"]  # a fixture

_CODE = re.compile(r"^( *)```\w*\n.*?^\1```$|`([^`]+)`", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """A block of Python, or a call in running text."""

    page: Path
    line: int
    text: str
    in_text: bool = False


def snippets(page: Path) -> list[Snippet]:
    """The code of a page in its order."""
    text = page.read_text(encoding="utf-8")
    found = [Snippet(page, b.line, b.text) for b in blocks_of(page) if b.language == "python"]
    for match in _CODE.finditer(text):
        call = " ".join((match[2] or "").split())
        if call and is_call(call):
            found.append(Snippet(page, text[: match.start(2)].count("\n") + 1, call + "\n", True))
    return sorted(found, key=lambda snippet: snippet.line)


def is_call(text: str) -> bool:
    """Whether `text` calls a public function of this package on a model or more, and leaves nothing out."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return False
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    omitted = any(isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(tree))
    return not omitted and isinstance(tree, ast.Call | ast.Attribute) and "model" in names and bool(names & set(PUBLIC))


PUBLIC = sae_unlearn.__all__
APART = {
    "docs/add-a-metric-or-attack.md": "sketches of code that the reader writes",
    "docs/add-an-sae-format.md": "sketches of code that the reader writes",
    "docs/audit.md": "an audit of a fitted guardrail takes minutes; its calls are held by test_docs",
    "docs/evaluate.md": "reads data sets of the Hub, and reports of other models",
    "docs/own-sae.md": "names tensors, a reader and SAEs of the reader's own",
    "docs/saes.md": "loads published SAEs of real models",
    "docs/share.md": "publishes what other pages made: a trainer, reports, audits",
    "docs/train.md": "its first block is the README's; the others set other options of it",
}
SEQUENCES = [page for page in PAGES if snippets(page) and page.relative_to(ROOT).as_posix() not in APART]
EXCHANGED = {
    "[8459, 10229, 9953]": "[1, 2, 5]",  # ids of a large SAE's features
    "somebody/guardrail": "me/forget-biology",
    "use_cuda_graph=False)": "use_cuda_graph=False, num_blocks=50, max_batch_tokens=64)",  # else all of the memory
}
GIVEN = {
    "docs/attach.md": {"biology_texts", "chemistry_texts", "other_texts"},
    "docs/batching.md": {"prompts"},
    "docs/fit.md": {"biology_texts", "chemistry_texts", "other_sae"},
    "docs/troubleshooting.md": {"guarded"},
}


def make(name: str, names: dict[str, Any]) -> Any:
    """One of the names in `GIVEN`."""
    if name == "guarded":
        return fit_guardrail(*parts(), names["forget_texts"], names["retain_texts"], progress=False)
    if name == "other_sae":
        return parts()[2]
    if name == "prompts":
        return names["tokenizer"](names["forget_texts"][:3])["input_ids"]
    return topic_texts("retain" if name == "other_texts" else "forget", 40, seed=len(name))


@pytest.mark.parametrize("page", SEQUENCES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_its_code_runs_in_its_order(page, readers_world):
    names, commit = readers_world
    label = page.relative_to(ROOT).as_posix()
    if "forget-chemistry" in page.read_text(encoding="utf-8"):
        chemistry = {"forget": topic_texts("forget", 40, seed=5), "retain": names["retain_texts"]}
        fit_guardrail(*parts(), **chemistry, progress=False).push_to_hub("me/forget-chemistry")
    names |= {name: make(name, names) for name in GIVEN.get(label, ())}
    for snippet in snippets(page):
        source = snippet.text.replace("<commit>", commit)
        for shown, used in EXCHANGED.items():
            source = source.replace(shown, used)
        if snippet.in_text:  # running text imports nothing
            names |= {name: getattr(sae_unlearn, name) for name in PUBLIC if name not in names}
        exec(compile("\n" * (snippet.line - 1) + source, label, "exec"), names)


def test_calls_in_running_text_are_seen():
    assert is_call('set_action(model, "refuse", message="no", tokenizer=tokenizer)')
    assert is_call("guardrail_status(model).verdict")
    for text in ("set_action(model, ...)", "set_action", "model.generate()", "a b", "set_action()"):
        assert not is_call(text)


def test_what_is_run_apart_is_there_and_not_the_readme():
    assert {ROOT / name for name in APART} <= set(PAGES)
    assert ROOT / "README.md" in SEQUENCES
    assert set(GIVEN) <= {page.relative_to(ROOT).as_posix() for page in SEQUENCES}
