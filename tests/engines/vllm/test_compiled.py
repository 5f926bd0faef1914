"""Code that vLLM compiles on a CPU: the guardrail's operator is in it, and code without it stops the engine.

Each engine is in a process of its own, as after a restart, and all share a folder for compiled code. The keys of that
code are vLLM's own.
"""

import os
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from fails_closed import stopped
from served import expected, prompts, save_guardrail, save_model, serving

from benchmarks.speed.kernel_count import waits
from sae_unlearn.engines.vllm import ops
from sae_unlearn.errors import GuardrailNotReady


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU captures graphs, which are refused")
ROWS = prompts()
COMPILED = {"enforce_eager": False, "max_num_batched_tokens": 64}
OPERATOR = "torch.ops.sae_unlearn.guard"


def start(run, *args, cache):
    """Call `run(*args)` in a process whose compiled code lies in `cache`, and return what it returns."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare, initargs=(cache,)) as process:
        return process.submit(run, *args).result()


def prepare(cache):
    """Let vLLM load what it compiled before.

    vLLM 0.32 compiles again at each start on a CPU: it misses a method of the code that it has read, which only its
    compiler for GPUs writes.
    """
    os.environ["VLLM_CACHE_ROOT"] = str(cache)
    load = torch.compiler.load_compiled_function

    def loaded(*args, **kwargs):
        function = load(*args, **kwargs)
        function._artifacts.compiled_fn = Complete(function._artifacts.compiled_fn)
        return function

    torch.compiler.load_compiled_function = loaded


class Complete:
    def __init__(self, compiled):
        self.finalize_loading = getattr(compiled, "finalize_loading", lambda config: None)


def compiled(cache):
    """The folders of compiled code, one for each key, with its text."""
    folders = (cache / "torch_compile_cache" / "torch_aot_compile").iterdir()
    return {folder: "".join(file.read_text() for file in folder.glob("inductor_cache/**/*.py")) for folder in folders}


def bare(model):
    with serving(model, [], **COMPILED) as engine:
        engine.llm.generate([{"prompt_token_ids": ROWS[0]}], use_tqdm=False)


def guarded(model, guard):
    """Compare all rows; return what waits for a device in the operator, and the addresses that it reads."""
    wanted, waited, places = expected(model, [guard], ROWS), Counter(), []
    with serving(model, [guard], **COMPILED) as engine:
        assert loads() == 0
        ((key, edit),) = ops._EDITS.items()

        def watched(hidden, residual):
            waited.update(waits(lambda: edit(hidden, residual)))
            places.append(addresses(engine.guards))

        ops._EDITS[key] = watched
        found, _ = engine.answers(ROWS)
    for one, other in zip(found, wanted, strict=True):
        assert one == other
    return waited, places


def addresses(guards):
    """Where the tensors lie that an operator in a CUDA graph would read: vLLM's buffers and the guardrail's own."""
    runner, (guard,) = guards.worker.model_runner, guards.guards
    blocks, table = runner.input_batch.block_table[guards._group], guard.table
    read = [runner.input_ids.gpu, runner.positions, blocks.slot_mapping.gpu, blocks.get_device_tensor(1)]
    own = [table.states, table.stamps, *guard.encoder.parameters(), *guard.decoder.parameters()]
    return [tensor.data_ptr() for tensor in [*read, *own]]


def stale(model, guard):
    part, says = "compiled code of the guarded model", "guardrail at layer 1 saw 0"
    with serving(model, [guard], **COMPILED) as engine:
        assert loads() == 1
        with stopped(part, GuardrailNotReady, says, "pass"):
            engine.answers(ROWS)


def loads():
    """How often vLLM loaded compiled code in this process."""
    from vllm.compilation.counter import compilation_counter

    return compilation_counter.num_aot_artifacts_loaded


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    """The bare engine and then the guarded one: model, guardrail, folders of both and what the second one returned."""
    folder = tmp_path_factory.mktemp("compiled")
    model, cache = save_model(folder, "llama"), folder / "cache"
    guard = save_guardrail(folder, model)
    start(bare, model, cache=cache)
    (before,) = compiled(cache)
    found = start(guarded, model, guard, cache=cache)
    (after,) = compiled(cache).keys() - {before}
    return model, guard, (before, after), found


def test_the_operator_is_in_the_compiled_code(restarted):
    """After the bare engine, the guarded one compiles its own code, whose answers are those of `generate()`."""
    _, _, (before, after), _ = restarted
    code = compiled(after.parents[2])
    assert code[before]
    assert OPERATOR not in code[before]
    assert OPERATOR in code[after]


def test_the_operator_can_be_in_a_graph(restarted):
    """It waits for no device, and what it reads does not move: what CUDA graphs need, as far as a CPU shows it."""
    *_, (waited, places) = restarted
    assert len(places) > 16  # passes
    assert not waited
    assert all(one == places[0] for one in places)


def test_code_of_the_bare_model_stops_the_guarded_engine(restarted):
    """As if it had the key of the guarded one."""
    model, guard, (before, after), _ = restarted
    shutil.rmtree(after)
    shutil.copytree(before, after)
    start(stale, model, guard, cache=after.parents[2])
    assert OPERATOR not in compiled(after.parents[2])[after]  # nothing was compiled
