"""Time that a guardrail adds to vLLM's passes, as ratios to the same engine without it.

    python -m benchmarks.serving.speed demo FOLDER         # in the environment of `nox -s vllm`
    python -m benchmarks.serving.speed gemma-2-2b FOLDER

`demo` is Gemma 3 270M with the guardrail `FOLDER/prefix` of `reference`; `gemma-2-2b` is the shape of `shape` with
random weights and a random guardrail, written to `FOLDER`. One engine; in each round every arm runs once, in an order
drawn at random: `none`, with vLLM's own layer and `execute_model`; `idle`, with a threshold out of reach; and `firing`,
with one that each row exceeds at its first token. Ratios are of this process's CPU time (user and system), one thread;
on a GPU, of wall time. Inside is the share of a round's wall time that the guardrail's own code takes. Writes
`serving_speed.json` and `serving_speed_2b.json` to `benchmarks/results`; a case that is there already is kept.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.serving.shape import save_shape
from benchmarks.speed.timing import compare, machine, median_interval


RESULTS = Path(__file__).resolve().parents[1] / "results"
FILES = {"demo": "serving_speed.json", "gemma-2-2b": "serving_speed_2b.json"}
ROWS = {"demo": {1: 40, 8: 30, 32: 8}, "gemma-2-2b": {1: 8, 8: 6, 32: 5}}
"""Rounds by the number of rows that are decoded."""
STEPS = 6
"""Decoding steps of a round."""
PREFILL_ROUNDS = {"demo": 10, "gemma-2-2b": 4}
THRESHOLDS = {"none": 1e6, "idle": 1e6, "firing": -1e6}
PROMPT = {"demo": 24, "gemma-2-2b": 4}
"""Tokens of the prompts that are decoded."""
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
PREFILL = (4, 128)
"""Rows and tokens of each in a pass of prompts."""


class Bench:
    """An engine with a guardrail that can be taken away."""

    def __init__(self, name: str, folder: Path) -> None:
        import vllm

        from sae_unlearn.demo.model import demo_model_folder

        settings: dict[str, Any] = {"paths": [str(folder / "prefix")]}
        options: dict[str, Any] = {"skip_tokenizer_init": True}
        model = demo_model_folder()
        if name != "demo":
            model = folder / name
            save_shape(model, folder / "random")
            settings = {"paths": [str(folder / "random")], "check_base": False}
            options["load_format"] = "dummy"
        self._params = vllm.SamplingParams
        self.llm = vllm.LLM(
            str(model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            max_num_batched_tokens=1024,
            max_num_seqs=32,
            enable_prefix_caching=False,
            seed=0,
            additional_config={"sae_guardrail": settings},
            **options,
        )
        self._prompt = PROMPT[name]
        self._draw = np.random.default_rng(0)
        self._count = 0
        self.inside: dict[str, list[float]] = {}  # by arm: the share of each round inside the guardrail
        worker = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        self.worker, self.guards = worker, worker.sae_guardrail
        self.layers = [
            layer for layer in worker.model_runner.get_model().modules() if hasattr(layer, "sae_guardrail_key")
        ]

    @contextmanager
    def arm(self, name: str) -> Iterator[None]:
        """Run with the arm's threshold, and without the guardrail if the arm is `none`."""
        for guard in self.guards.guards:
            guard.config.threshold = THRESHOLDS[name]
            while guard.config.never_fires:  # a threshold out of reach is refused
                guard.config.threshold /= 2
        if name != "none":
            yield
            return
        execute, classes = self.worker.execute_model, [type(layer) for layer in self.layers]
        self.worker.execute_model = execute.args[0]
        for layer in self.layers:
            layer.__class__ = type(layer).__mro__[1]
        try:
            yield
        finally:
            self.worker.execute_model = execute
            for layer, cls in zip(self.layers, classes, strict=True):
                layer.__class__ = cls

    def add(self, arm: str, rows: int, length: int, tokens: int) -> list[str]:
        """Add requests of random tokens."""
        names = []
        for _ in range(rows):
            ids = [2, *self._draw.integers(1000, 200_000, length - 1).tolist()]
            self._count += 1
            names.append(f"{arm}-{self._count}")
            params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            self.llm.llm_engine.add_request(names[-1], {"prompt_token_ids": ids}, params)
        return names

    def decode(self, arm: str, rows: int) -> float:
        """Seconds of a decoding step, the mean of `STEPS`."""
        engine = self.llm.llm_engine
        with self.arm(arm):
            self.add(arm, rows, self._prompt, STEPS + 1)
            engine.step()
            seconds = self._timed(arm, STEPS) / STEPS
            assert not engine.has_unfinished_requests()
        return seconds

    def _timed(self, arm: str, steps: int) -> float:
        """CPU seconds of some steps; notes the share of their wall time that is inside the guardrail."""
        counts = self.guards.counts
        guard, wall, begin = counts.total_seconds, time.perf_counter(), CLOCK()
        for _ in range(steps):
            self.llm.llm_engine.step()
        seconds = CLOCK() - begin
        wall = time.perf_counter() - wall
        self.inside.setdefault(arm, []).append((counts.total_seconds - guard) / wall)
        return seconds

    def prefill(self, arm: str) -> float:
        """Seconds of a pass of prompts."""
        engine, (rows, length) = self.llm.llm_engine, PREFILL
        with self.arm(arm):
            self.add(arm, rows, length, 1)
            seconds = self._timed(arm, 1)
            assert not engine.has_unfinished_requests()
        return seconds

    def fired(self) -> dict[str, float]:
        """Share of the requests of each arm, since the last call, on which the guardrail fired."""
        self.guards.records.end(list(self.guards.records._running))
        found: dict[str, list[bool]] = {}
        for name, by in self.guards.records.take().items():
            found.setdefault(name.split("-")[0], []).append(next(iter(by.values()))["fired"])
        return {arm: float(np.mean(values)) for arm, values in found.items()}


def measure(bench: Bench, call: Callable[[str], float], rounds: int) -> dict[str, Any]:
    """Ratios of the arms to `none`, after a round to warm up."""
    bench.inside.clear()
    draw = np.random.default_rng(0)
    arms = ["none", "idle", "firing"]
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 1):
        for arm in draw.permutation(arms):
            seconds = call(str(arm))
            if number:
                times[str(arm)].append(seconds)
    arrays = {arm: np.array(values) for arm, values in times.items()}
    found: dict[str, Any] = {arm: compare(arrays, arm, "none") for arm in ("idle", "firing")}
    found["none_ms"] = float(np.median(arrays["none"]) * 1e3)
    found["inside"] = {}
    for arm in ("idle", "firing"):
        shares = np.array(bench.inside[arm][1:])
        found["inside"][arm] = [float(np.median(shares)), *median_interval(shares)]
    found["fired"] = bench.fired()
    return found


def main(name: str, folder: str, results: str = "") -> None:
    """Measure all cases and write the results after each, to another folder if one is given."""
    import vllm

    bench, file = Bench(name, Path(folder)), (Path(results) if results else RESULTS) / FILES[name]
    rows, length = PREFILL
    cases: dict[str, tuple[Callable[[str], float], int]] = {
        f"decode, {count} rows": (lambda arm, count=count: bench.decode(arm, count), rounds)
        for count, rounds in ROWS[name].items()
    }
    cases[f"prefill, {rows} prompts of {length} tokens"] = bench.prefill, PREFILL_ROUNDS[name]
    found: dict[str, Any] = {"vllm": vllm.__version__, "machine": machine(), "cases": {}}
    if file.is_file():
        found = json.loads(file.read_text())
    for case, (call, rounds) in cases.items():
        if case in found["cases"]:
            continue
        found["cases"][case] = measure(bench, call, rounds)
        print(case, json.dumps(found["cases"][case]), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
