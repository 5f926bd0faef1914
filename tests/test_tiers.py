"""The fast tier has every subject, and the list of what is too costly for it names tests that exist."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

from tiers import TESTS, broad_tier, chosen


# Files without a test in the fast tier, and why.
WITHOUT = {
    "alignment/test_merged.py": "trains, merges and measures",
    "engines/vllm/test_http.py": "starts a server",
    "engines/vllm/test_tensor_parallel.py": "starts an engine of two processes",
    "evaluation/test_evaluate_device_map.py": "writes a model to disk and evaluates it",
    "guardrail/runtime/test_naive_gates.py": "searches rows on which a naive gate goes wrong",
    "guardrail/attach/test_interrupted_attaching.py": "attaches once for each call that is interrupted",
    "guardrail/base_model/test_tensor_parallel_refused.py": "starts two processes",
    "guardrail/bundles/test_malicious_bundles.py": "attaches a bundle for each lie",
    "guardrail/fit/test_fuzz_corpora.py": "draws hundreds of inputs",
    "guardrail/fit/test_fit_processes.py": "starts processes that import torch, 5 s of CPU each",
    "guardrail/fit/test_killed_fits.py": "fits once for each write that is cut",
    "guardrail/gate/test_fuzz_rows.py": "draws hundreds of inputs",
    "guardrail/kernels/test_peak_memory.py": "starts processes whose memory is measured",
    "guardrail/runtime/test_unseen_tokens_compiled.py": "compiles",
    "examples/test_demo_script.py": "runs a script in a process of its own",
    "sae/training/test_sae_in_processes.py": "starts two processes that train",
}
SLOWER = {"pytest.mark.slow", "pytest.mark.nightly"}


def functions(path: Path) -> dict[str, bool]:
    """The tests of a file, and whether each has a mark of a slower tier."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    marked = any(isinstance(node, ast.Assign) and ast.unparse(node) == "pytestmark = pytest.mark.slow" for node in body)
    return {
        node.name: marked
        or any(ast.unparse(d) in ("pytest.mark.slow", "pytest.mark.nightly") for d in node.decorator_list)
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@cache
def found() -> dict[str, dict[str, bool]]:
    """The tests of each file."""
    return {path.relative_to(TESTS).as_posix(): functions(path) for path in TESTS.rglob("test_*.py")}


def test_every_test_that_is_named_exists_and_is_not_marked_slow():
    named = {name: name.split("::") for name in broad_tier()}
    stale = [name for name, (file, function) in named.items() if found().get(file, {}).get(function) is not False]
    assert stale == []


def test_names_of_test_files_are_unique():
    counted = Counter(Path(file).name for file in found())
    assert [name for name, number in counted.items() if number > 1] == []


def test_every_file_has_a_test_in_the_fast_tier():
    kept = broad_tier()
    without = {
        file
        for file, tests in found().items()
        if not any(not slow and kept.get(f"{file}::{name}", 1) for name, slow in tests.items())
    }
    assert without == WITHOUT.keys()


def test_cases_of_a_list_are_spread_evenly():
    cases = [{"value": i} for i in range(10)]
    assert chosen(cases, 0) == set()
    assert chosen(cases, 2) == {0, 5}
    assert chosen(cases, 10) == set(range(10))


def test_of_a_product_every_value_is_tried():
    cases = [{"a": a, "b": b, "c": c} for a in range(3) for b in range(8) for c in range(2)]
    found = [cases[i] for i in chosen(cases, 8)]
    assert [len({case[name] for case in found}) for name in "abc"] == [3, 8, 2]
