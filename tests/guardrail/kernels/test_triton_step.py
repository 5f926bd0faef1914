"""The fused kernels under Triton's interpreter, without a GPU: `pip install triton`, and run this file by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is loaded and compiles; run this file by itself", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton")

from decoding import Decoding
from step_cases import FIELDS, LEFT_TO_OPERATORS, counted, generated, two_guardrails
from zoo import guarded, planted_config, token_ids

from benchmarks.speed.kernel_count import kernels
from sae_unlearn import record_firings
from sae_unlearn.guardrail.kernels import dispatch as step_choice
from sae_unlearn.guardrail.kernels import triton_step as fused
from sae_unlearn.guardrail.kernels.selfcheck import first_difference


CPU = torch.device("cpu")


@pytest.fixture
def steps(monkeypatch):
    """The kernels serve wherever they would on a GPU; the list grows by one at each step they do."""
    step, calls = counted(fused.fused_step)
    monkeypatch.setattr(step_choice, "on_host", lambda hidden: False)
    monkeypatch.setattr(step_choice, "on_gpu", lambda hidden: True)
    monkeypatch.setattr(fused, "fused_step", step)
    fused.works(CPU, torch.float32), fused.works(CPU, torch.bfloat16)
    calls.clear()
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_give_what_the_operators_do(dtype):
    assert first_difference(fused.fused_step, CPU, dtype) is None


def test_the_kernels_compile_to_the_machine_code_of_gpus(tmp_path):
    here = Path(__file__)
    paths = [str(here.parents[3]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET")
    done = subprocess.run(
        [sys.executable, here.with_name("compiled_kernels.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"75", "80", "90", "gfx942"}


@pytest.mark.parametrize("wrong", ["edit", "state", "error"])
def test_kernels_that_do_not_work_are_left_alone_with_a_warning(wrong, monkeypatch):
    step = fused.fused_step

    def broken(*args):
        edited = step(*args)
        if wrong == "error":
            raise RuntimeError("no compiler here")
        if wrong == "state":
            args[-1].keys = args[-1].keys + 1
        return edited + 0.01 if wrong == "edit" else edited

    monkeypatch.setattr(fused, "fused_step", broken)
    with pytest.warns(UserWarning, match="kernels .* cpu"):
        assert not fused.works.__wrapped__(CPU, torch.float32)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_generation_is_that_of_the_operators(fields, steps):
    model = guarded("llama", **{"min_tokens": 8, "threshold": 0.5} | fields)
    found = generated(model)
    assert len(steps) == 5
    step_choice.on_gpu = lambda hidden: False  # put back by the fixture
    expected = generated(model)
    assert len(steps) == 5
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    assert found[2] == expected[2]
    assert any(firing.fired for firing in found[2]) is (fields.get("threshold") != 0.999)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_guardrails_at_a_layer_add_their_edits_as_with_the_operators(dtype, steps):
    model = two_guardrails().to(dtype)
    found = generated(model)
    assert len(steps) == 2 * 5
    step_choice.on_gpu = lambda hidden: False  # put back by the fixture
    expected = generated(model)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-5)
    assert found[2] == expected[2]


@pytest.mark.parametrize("fields", [{"threshold": 0.999}, {"statistic": "windowed", "threshold": 50.0}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_fires_as_with_the_operators(value, fields, steps):
    model = guarded("llama", **fields)  # quiet but for that
    layer, found = model.get_base_model().model.layers[1], []
    handle = layer.register_forward_hook(
        lambda module, args, out: out.index_fill(0, torch.tensor([1]), value) if out.shape[1] == 1 else out,
        prepend=True,
    )
    for on in (True, False):
        step_choice.on_gpu = lambda hidden, on=on: on  # put back by the fixture
        decoding = Decoding(model)
        with record_firings(model) as firings:
            decoding.step()
        found.append((decoding.cache.layers[-1].keys[:, 0, -1], [firing.fired for firing in firings]))
    handle.remove()
    assert len(steps) == 1
    assert found[0][1] == found[1][1] == [False, True]
    torch.testing.assert_close(found[0][0], found[1][0], equal_nan=True)


def test_beams_are_those_of_the_operators(steps):
    model = guarded("llama", min_tokens=8, threshold=0.5, gate_scope="prefix")
    found = generated(model, num_beams=3, num_return_sequences=3)
    assert steps
    step_choice.on_gpu = lambda hidden: False
    expected = generated(model, num_beams=3, num_return_sequences=3)
    assert torch.equal(found[0], expected[0])
    assert found[2] == expected[2]


def test_a_step_is_two_kernels_and_the_caches_append(steps, monkeypatch):
    decoding, launched = Decoding(guarded("llama")), []

    class Launcher:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(self.name)

    bare = Decoding(guarded("llama"))
    bare.model.base_model.disable_adapter_layers()
    for name in ("encode_kernel", "gate_kernel"):
        monkeypatch.setattr(fused, name, Launcher(name))
    found = kernels(decoding.step)
    assert launched == ["encode_kernel", "gate_kernel"]
    bare.cache, bare.length = type(bare.cache)(config=bare.model.config), 0
    bare.run(bare.ids, 8)
    bare.length = 8
    found.subtract(kernels(bare.step))
    assert {name: n for name, n in found.items() if n} == {"aten.cat": 1}


@pytest.mark.parametrize("fields", LEFT_TO_OPERATORS.values(), ids=LEFT_TO_OPERATORS)
def test_what_the_kernels_do_not_compute_is_left_to_the_operators(fields, steps):
    generated(guarded("llama", **fields))
    assert steps == []


def test_prompts_are_left_to_the_operators(steps):
    guarded("llama")(input_ids=token_ids(2, 6), use_cache=True)
    assert steps == []


def test_training_and_weights_elsewhere_are_left_to_the_operators(steps):
    hidden, config = torch.zeros(2, 1, 32), planted_config()
    assert step_choice.step_for(config, hidden, CPU) is fused.fused_step
    assert step_choice.step_for(config, hidden.clone().requires_grad_(), CPU) is None
    assert step_choice.step_for(config, hidden, None) is None
    assert step_choice.step_for(config, hidden, torch.device("meta")) is None
    assert step_choice.step_for(config, hidden.expand(2, 2, 32), CPU) is None
