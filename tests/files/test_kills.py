"""Kills while an alignment is trained and saved, while a guardrail is fitted, and while one is attached.

Kills while a guardrail is saved are in `test_faults`.
"""

import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
from fitting import config_of, fit, same_fit
from moments import MOMENTS
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from tiny_entities import parts, settings
from tiny_topic import topic_texts
from zoo import base_model, guarded, logits_of, token_ids

import sae_unlearn
from sae_unlearn import (
    Entity,
    EntitySet,
    LabeledEntities,
    SAEAlignmentTrainer,
    SparseAutoencoder,
    attach_guardrail,
    guardrail_status,
)
from sae_unlearn.alignment.labeling.answer_log import Asked
from sae_unlearn.files.atomic import staged
from sae_unlearn.guardrail.fit import passes as fit_passes


CONFIG, WEIGHTS = CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME


# ----------------------------------------------------------------------------------------------------------- alignments


def trainer(folder: Path, **options: object) -> SAEAlignmentTrainer:
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **parts())


def adapter_in(folder: Path, **saved: Path) -> str:
    """Which of the `saved` adapters a folder holds, whole; "none" where PEFT would find none."""
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        return "none"
    config, weights = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    for name, other in saved.items():
        expected = load_file(other / WEIGHTS)
        assert weights.keys() == expected.keys()
        assert config.keys() == json.loads((other / CONFIG).read_text()).keys()
        if all(torch.equal(weights[key], tensor) for key, tensor in expected.items()):
            return name
    raise AssertionError("a mixture")


@pytest.mark.slow
@pytest.mark.parametrize("before", ["old", "none"])
def test_a_kill_while_the_trainer_saves_leaves_the_old_adapter_or_the_new_one(before, tmp_path):
    it, folder = trainer(tmp_path / "out"), tmp_path / "adapter"
    it.save_model(str(tmp_path / "old"))
    with torch.no_grad():
        for name, parameter in it.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(1.0)
    it.save_model(str(tmp_path / "new"))
    if before == "old":
        shutil.copytree(tmp_path / "old", folder)
        os.link(folder / WEIGHTS, tmp_path / "linked")
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        it.save_model(str(folder))
    found = [adapter_in(left, old=tmp_path / "old", new=tmp_path / "new") for left in [*copies, folder]]
    assert len(found) > 5
    assert set(found) == {before, "new"}
    assert found == sorted(found, key=lambda name: name == "new")  # once it is the new one it stays so
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in (tmp_path / "new").iterdir())
    if before == "old":  # replaced, and not written over: that is done by a library whose writing nothing tells of
        assert (tmp_path / "linked").read_bytes() == (tmp_path / "old" / WEIGHTS).read_bytes()


def test_a_kill_between_two_configs_leaves_no_mixture(tmp_path):
    """PEFT would put weights of one under the alpha of another, without a word."""
    for name, alpha in (("old", 4), ("new", 32)):
        it = trainer(tmp_path / "out")
        it.model.peft_config["default"].lora_alpha = alpha
        with torch.no_grad():
            for parameter_name, parameter in it.model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.add_(alpha)
        it.save_model(str(tmp_path / name))
    folder = tmp_path / "adapter"
    shutil.copytree(tmp_path / "old", folder)
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        it.save_model(str(folder))
    found = []
    for left in [*copies, folder]:
        name = adapter_in(left, old=tmp_path / "old", new=tmp_path / "new")
        if name != "none":
            assert (left / CONFIG).read_text() == (tmp_path / name / CONFIG).read_text()
        found.append(name)
    assert found == sorted(found, key=["old", "none", "new"].index)
    assert {found[0], found[-1]} == {"old", "new"}


@pytest.mark.parametrize("what", ["an SAE", "labeled entities", "any files"])
def test_files_of_two_saves_never_stand_beside_each_other(what, tmp_path):
    def save(which):
        if what == "an SAE":
            weights = torch.full((4, 4), float(which))
            SparseAutoencoder(weights, weights[0], weights, weights[0], architecture="topk", k=which).save_pretrained(
                tmp_path / "it"
            )
        elif what == "labeled entities":
            entity = Entity("w2", "thing", {"colour": "w3"})
            known, unknown = (EntitySet([entity]), EntitySet()) if which == 1 else (EntitySet(), EntitySet([entity]))
            answers = (Asked("w2", "thing", "colour", "w4", ("w3",), ("w3",), which),)
            LabeledEntities(known, unknown, EntitySet(), answers, {}).save(tmp_path / "it")
        else:
            with staged(tmp_path / "it", key="key") as stage:
                (stage / "key").write_text(str(which)), (stage / "other").write_text(str(which))

    def held(folder):
        files = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
        key = {"an SAE": "cfg.json", "labeled entities": "answers.jsonl", "any files": "key"}[what]
        return files if key in files else None

    save(1)
    old = held(tmp_path / "it")
    with MOMENTS.watch(tmp_path / "it", tmp_path / "copies") as copies:
        save(2)
    new = held(tmp_path / "it")
    found = [held(copied) for copied in copies]
    assert len(found) > 3
    assert all(files in (None, old, new) for files in found)
    assert found[0] == old != new


@pytest.mark.slow
@pytest.mark.parametrize("before", ["old", "none"])
def test_a_kill_while_it_trains_leaves_whole_adapters_in_its_checkpoints(before, tmp_path):
    folder, options = tmp_path / "out", {"save_strategy": "steps", "save_steps": 2}
    if before == "old":
        trainer(folder, seed=2, **options).train()
        shutil.copytree(folder, tmp_path / "old")
    with MOMENTS.watch(folder, tmp_path / "copies") as copies:
        trainer(folder, **options).train()
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        saved = {"new": folder / checkpoint} | ({"old": tmp_path / "old" / checkpoint} if before == "old" else {})
        found = [adapter_in(left / checkpoint, **saved) for left in [*copies, folder]]
        assert set(found) == {before, "new"}
        assert found == sorted(found, key=lambda name: name == "new")


# ----------------------------------------------------------------------------------------------------------------- fits


FORGET, RETAIN = (topic_texts(side, number, seed=5, words=60) for side, number in (("forget", 70), ("retain", 90)))


def fitted(folder: Path | None = None, model: torch.nn.Module | None = None) -> torch.nn.Module:
    return fit(model, FORGET, RETAIN, batch_size=4, checkpoint_dir=folder)


@pytest.mark.slow
def test_a_fit_that_was_killed_at_any_of_its_writes_goes_on_to_the_unbroken_result(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_passes, "EVERY", 4)
    whole = fitted()
    with MOMENTS.watch(tmp_path / "fit", tmp_path / "copies") as copies:
        fitted(tmp_path / "fit")
    left = {tuple(path.read_bytes() for path in sorted(copied.glob("fit-*"))): copied for copied in copies}
    assert len(copies) > 30
    assert len(left) > 10
    for copied in left.values():
        resumed = fitted(copied)
        same_fit(whole, resumed)
        assert config_of(resumed).calibration == config_of(whole).calibration
        assert not list(copied.glob("fit-*"))


@pytest.mark.slow
def test_a_fit_that_is_interrupted_at_any_of_its_writes_leaves_nothing_on_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_passes, "EVERY", 12)
    model = base_model("llama")
    untouched = traces(model)
    for number in count():
        try:
            with MOMENTS.watch(tmp_path / f"fit{number}", tmp_path / f"copies{number}", interrupt_at=number):
                fitted(tmp_path / f"fit{number}", model)
        except KeyboardInterrupt:
            assert traces(model) == untouched
        else:
            break
    assert number > 15


# ------------------------------------------------------------------------------------------------------------ attaching


def traces(model: torch.nn.Module) -> dict[str, object]:
    """What an adapter leaves on a model: modules, hooks, tensors, and which adapters there are."""
    hooks = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._buffers))
        for name, module in model.named_modules()
    }
    own = {name: "forward" in vars(module) for name, module in model.named_modules()}
    configs = {name: sorted(getattr(module, "peft_config", ())) for name, module in model.named_modules()}
    status = guardrail_status(model)
    return {
        "hooks": hooks,
        "forwards": own,
        "configs": configs,
        "bare": hasattr(model, "peft_config"),
        "tensors": [(name, id(tensor)) for name, tensor in model.named_parameters()],
        "guardrails": status.guardrails,
        "active": model.active_adapter if isinstance(model, PeftModel) else None,
    }


PACKAGE = str(Path(sae_unlearn.__file__).parent / "guardrail")


@contextmanager
def interrupted_at(number: int) -> Iterator[list[str]]:
    """A KeyboardInterrupt at the call of this number that is made in the guardrail's package, or inside PEFT, from
    `place_guardrail` on: before, the model is only read.

    Yields:
        The names of the functions called up to there.
    """
    called: list[str] = []

    def trace(frame, event, _):
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) or f"{os.sep}peft{os.sep}" in code.co_filename
        ours = ours and (bool(called) or code.co_name == "place_guardrail")
        if event == "call" and ours and not code.co_flags & inspect.CO_GENERATOR:  # which Python may be closing
            called.append(code.co_name)
            if len(called) > number:
                sys.settrace(None)
                raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        yield called
    finally:
        sys.settrace(None)


def with_lora() -> torch.nn.Module:
    return get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "bare": lambda: base_model("llama"),
    "guarded": lambda: guarded("llama"),
    "beside a LoRA": with_lora,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_attaching_that_is_interrupted_anywhere_leaves_nothing_half_attached(make, tmp_path):
    guarded("llama", layer=2).save_pretrained(tmp_path)
    with interrupted_at(sys.maxsize) as called:
        attach_guardrail(make(), tmp_path, adapter_name="second")
    assert {"place_guardrail", "inject_adapter", "update_layer", "set_adapter", "_write"} <= set(called)
    first = {name: called.index(name) for name in called}
    last = {name: number for number, name in enumerate(called)}
    model, ids = make(), token_ids(2, 8)
    untouched, plain = traces(model), logits_of(model, ids)
    for number in sorted({*first.values(), *last.values()}):
        with pytest.raises(KeyboardInterrupt), interrupted_at(number):
            attach_guardrail(model, tmp_path, adapter_name="second")
        assert traces(model) == untouched, called[number]
    assert torch.equal(logits_of(model, ids), plain)
    attach_guardrail(model, tmp_path, adapter_name="second")
