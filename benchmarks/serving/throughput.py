"""Processor time of a guardrail in the steps of `generate_batch`, idle and firing.

    python -m benchmarks.serving.throughput demo FOLDER
    python -m benchmarks.serving.throughput gemma-2-2b

write `benchmarks/results/batching_speed.json` and `batching_speed_2b.json`. `FOLDER` is that of `reference`, with the
guardrail `prefix`; `gemma-2-2b` is the shape of `shape` with random weights and a random guardrail. The time
of each step is taken in the thread that runs it, and within it the time of all code of the guardrail: its hooks on
model, backbone and layer, and the tables of requests. The ratio is the step's time over what is left without the
guardrail's. So other processes disturb it little, and step and guardrail are measured in the same steps. Idle: the
threshold is hardly in reach. Firing: every row fires at its first token.
"""

import functools
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor

from benchmarks.serving.shape import guard_at_random, shape
from benchmarks.speed.timing import machine
from sae_unlearn import attach_guardrail
from sae_unlearn.demo.model import load_demo_model
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.runtime import continuous_batching
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks, ModelHooks


RESULTS = Path(__file__).resolve().parents[1] / "results"
FILES = {"demo": "batching_speed.json", "gemma-2-2b": "batching_speed_2b.json"}
CELLS = {"decode 1": (1, 8, 33), "decode 8": (8, 8, 33), "decode 32": (32, 8, 33), "prefill": (4, 256, 1)}
"""By name: rows, tokens of each prompt, tokens that are generated; the first comes with the prompt."""
PREFILLS = 3
"""Times that a cell of one step is run."""

THRESHOLDS = {"idle": 1e6, "firing": -1e6}
own = 0.0


def timed(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, whose time in this thread is added to the guardrail's."""

    @functools.wraps(call)
    def with_time(*args: Any, **kwargs: Any) -> Any:
        global own
        start = time.thread_time()
        try:
            return call(*args, **kwargs)
        finally:
            own += time.thread_time() - start

    return with_time


def answer(model: Any, rows: list[list[int]], tokens: int) -> None:
    """Answer prompts of token ids.

    Raises:
        RuntimeError: If an answer failed or is short.
    """
    longest = max(map(len, rows))
    blocks = 2 + len(rows) * (1 + (longest + tokens) // 32)
    batching = ContinuousBatchingConfig(
        page_size=32, num_blocks=blocks, max_batch_tokens=len(rows) * longest, allow_block_sharing=False
    )
    generation = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1)
    found = model.generate_batch(rows, generation_config=generation, continuous_batching_config=batching)
    if sorted(len(output.generated_tokens) for output in found.values()) != [tokens] * len(rows):
        raise RuntimeError(next((output.error for output in found.values() if output.error), "an answer is short"))


def guarded(name: str, folder: str) -> Any:
    """Return the model with its guardrail."""
    if name == "demo":
        return attach_guardrail(load_demo_model()[0], Path(folder) / "prefix")
    return guard_at_random(AutoModelForCausalLM.from_config(shape()).eval())


def main(name: str, folder: str = "") -> None:
    """Time all cells, and write the results."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for kind, name in (
        (BackboneHooks, "before"),
        (BackboneHooks, "after"),
        (ModelHooks, "before"),
        (ModelHooks, "after"),
        (SAEGuardrailLayer, "guard"),
    ):
        setattr(kind, name, timed(getattr(kind, name)))
    continuous_batching._begun = timed(continuous_batching._begun)
    model = guarded(name, folder)
    (layer,) = guard_layers(model)
    (config,) = layer.guard_config.values()
    steps: list[tuple[float, float]] = []
    inner = ContinuousBatchProcessor._generation_step

    def step(self: Any, on: Any) -> None:
        global own
        own, start = 0.0, time.thread_time()
        inner(self, on)
        steps.append((time.thread_time() - start, own))

    ContinuousBatchProcessor._generation_step = step
    cells: dict[str, Any] = {}
    for arm, threshold in THRESHOLDS.items():
        config.threshold = threshold
        while config.never_fires:  # a threshold out of reach is refused
            config.threshold /= 2
        for case, (rows, prompt, tokens) in CELLS.items():
            ids = torch.randint(1000, 200_000, (rows, prompt), generator=torch.Generator().manual_seed(0)).tolist()
            steps.clear()
            for _ in range(1 if tokens > 1 else PREFILLS):
                answer(model, ids, tokens)
            counted = [step for step in steps[1:] if step[1]] if tokens > 1 else [s for s in steps if s[1]]
            cell = cells.setdefault(case, {"rows": rows, "prompt": prompt, "steps": len(counted)})
            ratios = sorted(whole / (whole - part) for whole, part in counted)
            cell[arm] = {
                "step_ms": 1e3 * statistics.median(whole for whole, _ in counted),
                "guardrail_ms": 1e3 * statistics.median(part for _, part in counted),
                "ratio": statistics.median(ratios),
                "ratio_low": ratios[len(ratios) // 10],
                "ratio_high": ratios[-1 - len(ratios) // 10],
            }
            print(case, arm, cell[arm], flush=True)
    (RESULTS / FILES[name]).write_text(json.dumps({"machine": machine(), "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
