"""Throughput of `generate_batch`: without a guardrail, with an idle one, and with one that fires.

    python -m benchmarks.serving.throughput FOLDER --output benchmarks/results/batching_speed.json --clock process

`FOLDER` is that of `reference`, with the guardrail `prefix`. One model in one process answers the same prompts in each
round: bare (the guardrail is detached), idle (its threshold is hardly in reach), and firing (every row fires at its
first token). All arms compute the same number of tokens. A run that was cut short goes on with the missing cells.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.speed.timing import Results, compare, interleaved, machine, timing_parser
from sae_unlearn import attach_guardrail, detach_guardrail
from sae_unlearn.demo.model import load_demo_model
from sae_unlearn.guardrail import guard_layers


ROWS = (1, 8, 32)
"""Requests that are answered at once."""

PROMPT, TOKENS = 8, 33
"""Tokens of each prompt, and tokens that are generated. The first one comes with the prompt, the rest are decoded."""

LONG = 256
"""Tokens of each of the four prompts of the cell `prefill`, after which one token is generated."""


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


def arms(model: nn.Module, folder: Path, rows: list[list[int]], tokens: int) -> dict[str, Callable[[], None]]:
    """The calls to time. Each leaves the model bare."""

    def guarded(threshold: float) -> Callable[[], None]:
        def call() -> None:
            with_guard = attach_guardrail(model, folder / "prefix")
            (layer,) = guard_layers(with_guard)
            (config,) = layer.guard_config.values()
            config.threshold = threshold
            while config.never_fires:  # a threshold out of reach is refused
                config.threshold /= 2
            try:
                answer(with_guard, rows, tokens)
            finally:
                detach_guardrail(with_guard)

        return call

    def attach_only() -> None:
        detach_guardrail(attach_guardrail(model, folder / "prefix"))

    return {
        "none": lambda: answer(model, rows, tokens),
        "idle": guarded(1e6),
        "firing": guarded(-1e6),
        "attach": attach_only,
    }


def cells() -> dict[str, tuple[int, int, int]]:
    """By name: rows, tokens of each prompt, tokens that are generated."""
    return {f"decode {rows}": (rows, PROMPT, TOKENS) for rows in ROWS} | {"prefill": (4, LONG, 1)}


def measure(model: nn.Module, folder: Path, name: str, seconds: float, clock: str) -> dict[str, Any]:
    """One cell: throughput of the bare model, and the ratio of the others' times to its."""
    rows, prompt, tokens = cells()[name]
    ids = torch.randint(1000, 200_000, (rows, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    times = interleaved(arms(model, folder, ids, tokens), seconds, clock, least=5, most=40, warmup=1)
    attaching = times.pop("attach")
    for arm in ("idle", "firing"):  # a service attaches once
        times[arm] = times[arm] - attaching
    computed = rows * (tokens if tokens > 1 else prompt)
    cell: dict[str, Any] = {"machine": machine(), "rows": rows, "tokens_per_second": {}}
    for arm, found in times.items():
        cell["tokens_per_second"][arm] = computed / float(sorted(found)[len(found) // 2])
    return cell | {arm: compare(times, arm, "none") for arm in ("idle", "firing")}


def main() -> None:
    """Time the cells that are missing in the output."""
    parser = timing_parser(__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, _ = load_demo_model()
    results = Results(args.output, {"clock": args.clock, "threads": args.threads, "tokens": TOKENS, "prompt": PROMPT})
    for name in cells():
        if name not in results.cells:
            results.add(name, measure(model, args.folder, name, args.seconds, args.clock))
            print(name, results.cells[name]["idle"], results.cells[name]["firing"], flush=True)


if __name__ == "__main__":
    main()
