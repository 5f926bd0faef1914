"""Private names of other packages: each is there, and stands in one place."""

import ast
from importlib import import_module
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from zoo import base_model, guarded

import sae_unlearn
from sae_unlearn import attach_guardrail, detach_guardrail
from sae_unlearn.backbone import private_api
from sae_unlearn.backbone.private_api import (
    OVERRIDDEN,
    READ_IN_PLACE,
    compiled_module,
    forward_hook_owners,
    has_loaded_adapters,
    pre_hook_owners,
    remove_hooks,
    unsaved,
)


PACKAGE = Path(sae_unlearn.__file__).parent
NEW_IN_021 = ("_get_adapter_state_dict", "_remap_adapter_state_dict_for_load")
SET_BY_INSTANCES = (
    "_active_adapter",
    "_disable_adapters",
    "_eval_dataloaders",
    "_modules",
    "_name_or_path",
    "_parameters",
)
MODULES = {"_C"}  # of torch
STANDARD_LIBRARY = {  # named tuples, argparse, sys; and enum, whose names with two underscores are public
    *("_asdict", "_replace", "_actions", "_ArgumentGroup", "_SubParsersAction", "_getframe"),
    *("_name_", "_value_", "_sort_order_", "_member_names_", "_member_map_", "_value2member_map_"),
}


def found(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)  # `torch._C` too, an attribute of torch


@pytest.mark.parametrize(
    ("path", "name"),
    [(path, name) for names in (OVERRIDDEN, READ_IN_PLACE) for path, group in names.items() for name in group],
)
def test_a_name_is_there(path, name):
    if name in NEW_IN_021 and peft.__version__ < "0.21":
        pytest.skip("PEFT 0.20 asks no tuner")
    if name in SET_BY_INSTANCES:
        source = Path(import_module(found(path).__module__).__file__).read_text(encoding="utf-8")
        assert name in source
    else:
        assert hasattr(found(path), name)


class Watcher:
    def before(self, module, args):
        return None

    def after(self, module, args, output):
        return None


def test_hooks_are_told_by_their_owners_and_removed_by_their_class():
    layer, watcher = nn.Linear(2, 2), Watcher()
    layer.register_forward_pre_hook(watcher.before)
    layer.register_forward_hook(watcher.after, always_call=True)
    layer.register_forward_hook(lambda module, args, output: None, with_kwargs=False)
    assert pre_hook_owners(layer) == [watcher]
    assert forward_hook_owners(layer) == [watcher, None]
    remove_hooks(layer, Watcher)
    assert (pre_hook_owners(layer), forward_hook_owners(layer)) == ([], [None])
    assert not layer._forward_hooks_always_called


def test_a_compiled_module_is_looked_into():
    layer = nn.Linear(2, 2)
    assert compiled_module(torch.compile(layer, backend="eager")) is layer
    assert compiled_module(layer) is layer


def test_keys_are_left_out_of_a_save_inside_the_block_only(tmp_path):
    model = base_model("llama")
    with unsaved(model, ["model.norm.weight"]):
        model.save_pretrained(tmp_path / "without")
    model.save_pretrained(tmp_path / "with")
    keys = {}
    for name in ("without", "with"):
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            keys[name] = set(file.keys())
    assert keys["with"] - keys["without"] == {"model.norm.weight"}


def test_a_model_that_transformers_gave_its_adapter_forgets_it_with_the_last(tmp_path):
    guarded("llama").save_pretrained(tmp_path)
    model = base_model("llama")
    model.load_adapter(str(tmp_path))
    assert has_loaded_adapters(model)
    assert not has_loaded_adapters(detach_guardrail(model))
    assert isinstance(attach_guardrail(model, tmp_path), PeftModel)


def own_names(trees):
    """Private names that this package itself defines or sets."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
    return names


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_every_private_name_of_another_package_is_listed():
    listed = {name for names in (OVERRIDDEN, READ_IN_PLACE) for group in names.values() for name in group}
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    known, unlisted = own_names(trees.values()) | listed | STANDARD_LIBRARY | MODULES, {}
    for path, tree in trees.items():
        if path == Path(private_api.__file__) or "engines" in path.parts:  # an engine's names: see its `limits`
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or is_self(node.value) or node.attr in known:
                continue
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                unlisted.setdefault(node.attr, []).append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert unlisted == {}
