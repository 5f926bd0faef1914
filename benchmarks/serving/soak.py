"""Growth of a process that serves thousands of requests with vLLM, with and without a guardrail.

    python -m benchmarks.serving.soak FOLDER          # in the environment of `nox -s vllm`

A small Gemma 3 of random weights, written to `FOLDER`. Each arm runs in processes of its own, in turns: `bare` without
the package's settings, and `guarded`. Requests come, end and are aborted at random, up to 12 at once. Resident memory
is read after each tenth of the requests. Writes `benchmarks/results/serving_soak_memory.json` after each process; those
that are there already are kept.
"""

import gc
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any


os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = Path(__file__).resolve().parents[1] / "results" / "serving_soak_memory.json"
REQUESTS = 2000
RUNS = 2
ARMS = ("bare", "guarded")
VOCABULARY = 512
TOKENS = 12
"""Largest number of tokens of an answer."""


def save(folder: Path) -> tuple[Path, Path]:
    """Save a small model and a guardrail for it, unless they are there."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    from benchmarks.speed.models import synthetic_sae
    from sae_unlearn import SAEGuardrailConfig, attach_guardrail
    from sae_unlearn.guardrail import TokenRules

    model, guardrail = folder / "small", folder / "small-guardrail"
    if guardrail.is_dir():
        return model, guardrail
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32}
    bare = AutoModelForCausalLM.from_config(Gemma3TextConfig(**sizes, **heads, sliding_window=64)).eval()
    bare.save_pretrained(model)
    config = SAEGuardrailConfig(
        layer=1,
        feature_ids=list(range(8)),
        threshold=0.9,
        clamp_value=-1.0,
        gate_scope="prefix",
        tokens=TokenRules(special_ids=[0, 1, 2]),
    )
    attach_guardrail(bare, config, sae=synthetic_sae(64, 8, "cpu", threshold=1.0)).save_pretrained(guardrail)
    return model, guardrail


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(arm: str, folder: Path, seed: int) -> dict[str, Any]:
    """Serve the requests in this process."""
    from vllm import LLM, SamplingParams

    model, guardrail = save(folder)
    options: dict[str, Any] = {}
    if arm == "guarded":
        options["additional_config"] = {"sae_guardrail": {"paths": [str(guardrail)]}}
    engine = LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        skip_tokenizer_init=True,
        **options,
    ).llm_engine
    draw, live, sent, aborted = random.Random(seed), [], 0, 0
    resident_by_tenth: list[int] = []
    while sent < REQUESTS or live:
        while sent < REQUESTS and len(live) < 12 and draw.random() < 0.7:
            ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(3, 110))]
            params = SamplingParams(temperature=0, max_tokens=draw.randint(1, TOKENS), detokenize=False)
            live.append(f"soak{sent}")
            engine.add_request(live[-1], {"prompt_token_ids": ids}, params)
            sent += 1
            if sent * 10 % REQUESTS == 0:
                gc.collect()
                resident_by_tenth.append(resident())
        if live and draw.random() < 0.15:
            engine.abort_request([live.pop(draw.randrange(len(live)))])
            aborted += 1
        ended = {output.request_id for output in engine.step() if output.finished}
        live = [name for name in live if name not in ended]
    first = resident_by_tenth[0]
    mib = [round((size - first) / 2**20, 2) for size in resident_by_tenth]
    return {"arm": arm, "requests": sent, "aborted": aborted, "mib_by_tenth": mib}


def main(folder: str, arm: str = "", seed: str = "0") -> None:
    """Run all arms in processes of their own and write the results, or one arm in this process."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    if arm:
        print(json.dumps(serve(arm, out, int(seed))))
        return
    save(out)
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else []
    for number, each in list(itertools.product(range(RUNS), ARMS))[len(runs) :]:
        command = [sys.executable, "-m", "benchmarks.serving.soak", folder, each, str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(runs[-1], flush=True)
        RESULTS.write_text(json.dumps({"requests": REQUESTS, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
