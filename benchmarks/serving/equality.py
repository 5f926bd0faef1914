"""Tokens and records of vLLM with the guardrail, compared with those of `generate()`.

    python -m benchmarks.serving.equality FOLDER [SCENARIO ...]   # in the environment of `nox -s vllm`
    python -m benchmarks.serving.equality FOLDER --write          # benchmarks/results/serving_equality.json

`FOLDER` is that of `reference`; a scenario that is there already is kept. Exits with 1 if an answer or a record is not
that of `generate()`.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from benchmarks.serving.kept import run_or_write
from benchmarks.serving.reference import FIELDS, TOKENS
from benchmarks.serving.scenarios import ON_A_GPU, SCENARIOS, Scenario
from sae_unlearn.engines.request_ids import vllm_requests


RESULTS = Path(__file__).resolve().parents[1] / "results" / "serving_equality.json"


def run(folder: Path, scenario: Scenario) -> dict[str, Any]:
    """Answer all prompts, and return what was the same and what happened."""
    import vllm

    found: dict[str, Any] = {"what": scenario.what, "adapter": scenario.adapter, "vllm": vllm.__version__}
    with started(folder, scenario) as (engine, counters):
        ask = partial(asked, engine, folder, scenario.adapter, scenario.sampling, scenario.lora)
        found["runs"] = [ask() for _ in range(scenario.repeat)]
    found["passes"] = counters
    return found


@contextmanager
def started(folder: Path, scenario: Scenario, among: Sequence[str] = ()) -> Iterator[tuple[Any, dict[str, int]]]:
    """Start an engine, and give it with the counts of what happens in it.

    Args:
        folder (Path): That of `reference`.
        scenario (Scenario): The engine's.
        among (Sequence[str], *optional*): Guardrails among which requests choose, in the place of the scenario's.
    """
    import vllm
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from sae_unlearn.demo.model import demo_model_folder

    options: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": 16,
        "seed": 0,
        "skip_tokenizer_init": True,
    }
    options |= scenario.engine
    if scenario.adapter != "none":
        settings: dict[str, Any] = {"paths": [str(folder / name) for name in among or (scenario.adapter,)]}
        if among:
            settings["per_request"] = True
        if scenario.untested:
            settings["untested"] = True
        options["additional_config"] = {"sae_guardrail": settings}
    engine = vllm.LLM(str(demo_model_folder()), **options)
    try:
        yield engine, count_passes(engine)
    finally:
        engine.llm_engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()


def asked(
    engine: Any,
    folder: Path,
    adapter: str,
    sampling: dict[str, Any],
    lora: bool = False,
    longest: int | None = None,
) -> dict[str, Any]:
    """Answer prompts once, and return what was the same as in `reference.json`.

    Args:
        engine (LLM): vLLM's.
        folder (Path): That of `reference`.
        adapter (str): The guardrail of the answers to compare with.
        sampling (dict): As in `Scenario`.
        lora (bool, *optional*, defaults to `False`): As in `Scenario`.
        longest (int, *optional*): Leave out prompts of more tokens. Defaults to none.
    """
    import vllm

    reference = json.loads((folder / "reference.json").read_text())
    if longest is not None:
        kept = [number for number, ids in enumerate(reference["ids"]) if len(ids) <= longest]
        reference = {name: [rows[number] for number in kept] for name, rows in reference.items()}
    sampling = {"temperature": 0, "max_tokens": TOKENS, "detokenize": False} | sampling
    inputs = [{"prompt_token_ids": ids} for ids in reference["ids"]]
    begin = time.perf_counter()
    lora_request = _lora(folder) if lora else None
    outputs = engine.generate(inputs, vllm.SamplingParams(**sampling), use_tqdm=False, lora_request=lora_request)
    seconds = round(time.perf_counter() - begin, 1)
    ranks = engine.collective_rpc("sae_guardrail_records") if adapter != "none" else [{}]
    cached = sum(output.num_cached_tokens or 0 for output in outputs)
    return {**compare(reference, adapter, outputs, ranks), "cached_tokens": cached, "seconds": seconds}


def count_passes(engine: Any) -> dict[str, int]:
    """Count passes, pieces of prompts before the last, resumed requests and drafts of an engine in this process."""
    core = getattr(engine.llm_engine.engine_core, "engine_core", None)
    found = {"passes": 0, "pieces": 0, "resumed": 0, "drafts": 0}
    if core is None or not hasattr(core.model_executor, "driver_worker"):
        return found
    schedule = core.scheduler.schedule

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        found["passes"] += bool(output.total_num_scheduled_tokens)
        found["resumed"] += len(output.scheduled_cached_reqs.resumed_req_ids)
        found["drafts"] += sum(map(len, output.scheduled_spec_decode_tokens.values()))
        for request in output.num_scheduled_tokens:
            state = core.scheduler.requests[request]
            found["pieces"] += state.num_computed_tokens < state.num_prompt_tokens
        return output

    core.scheduler.schedule = counted
    return found


def compare(reference: dict[str, Any], adapter: str, outputs: list[Any], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """How many prompts have the tokens, and the records, of `generate()`."""
    tokens, records, fired, changed, differing = 0, 0, 0, 0, []
    for number, (output, wanted, bare) in enumerate(zip(outputs, reference[adapter], reference["none"], strict=True)):
        same = all(list(sample.token_ids) == wanted["tokens"] for sample in output.outputs)
        tokens += same
        changed += wanted["tokens"] != bare["tokens"]
        if not same:
            differing.append(number)
        if adapter == "none":
            continue
        own = [rank[name][adapter] for rank in ranks for name in vllm_requests(rank, output.request_id)]
        expected = [wanted["record"][field] for field in FIELDS]
        records += bool(own) and all([record[field] for field in FIELDS] == expected for record in own)
        fired += wanted["record"]["fired"]
    of = len(outputs)
    return {
        "prompts": of,
        "tokens": tokens,
        "records": records,
        "fired": fired,
        "changed": changed,
        "differ": differing,
    }


def _lora(folder: Path) -> Any:
    """A LoRA adapter on disk whose product is 0, as a request of vLLM; made if it is not there."""
    from peft import LoraConfig, get_peft_model
    from vllm.lora.request import LoRARequest

    from sae_unlearn.demo.model import load_demo_model

    path = folder / "lora"
    if not path.is_dir():
        model = get_peft_model(load_demo_model()[0], LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
        model.save_pretrained(path)
    return LoRARequest("zero", 1, str(path))


if __name__ == "__main__":
    known = ON_A_GPU if set(sys.argv[2:]) & set(ON_A_GPU) else SCENARIOS
    sys.exit(not run_or_write(Path(sys.argv[1]), "run", known, sys.argv[2:], run, RESULTS))
