"""What a guardrail adds to the running model, against no adapter, an empty wrapper, the whole SAE and a LoRA.

    python -m benchmarks.speed.inference --model demo --output benchmarks/results/inference_speed.json
    python -m benchmarks.speed.inference --model gemma-2-2b --dtype bfloat16 --device cuda --output FILE.json

All arms share one set of weights and run in one process in turns, one prefill or one decoded token each; a figure is a
median over rounds of what was measured in the same round. SAE and guardrail weights are random, except that the
guardrails fire where they are said to: what is timed does not depend on them. A run that is cut short goes on with the
cells (phase and batch) that are missing. `--table` prints the table of a file that is there.

Arms: `none` no adapter; `off` guardrail attached and disabled; `idle` and `fires` a guardrail of 20 features on rows on
which its gate is quiet, or fires, and edits what is timed; `fires N=200`; `fires x4` four guardrails at one layer;
`sae 16k` the published procedure with an SAE of that width in a hook; `lora 16` a LoRA of rank 16 on every linear
layer, not merged.

Phases: `prefill` a prompt, `step` one decoded token, `compiled` one decoded token by code that `torch.compile` made of
the whole model (`fullgraph=True`, a static cache), where kernels are those that it wrote.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import metrics
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from transformers import DynamicCache, StaticCache

from benchmarks.speed.kernel_count import kernels, waits
from benchmarks.speed.models import (
    guarded,
    load,
    random_ids,
    switched_off,
    synthetic_sae,
    twin,
    with_lora,
    with_whole_sae,
)
from benchmarks.speed.timing import Results, compare, interleaved, machine, times_less
from sae_unlearn import record_firings
from sae_unlearn.backbone.layers import text_config
from sae_unlearn.guardrail.gate.decision import State


PROMPT = {1: 128, 8: 64, 32: 32}  # tokens of a prompt by batch, so that a prefill takes seconds on a CPU
COMPILED_LENGTH = 640  # of the static cache: a prompt, and the most steps that are timed
WIDTHS = {"4k": 4096, "16k": 16384, "65k": 65536, "131k": 131072}


class Decoding:
    """A model in the middle of a generation."""

    def __init__(self, model: nn.Module, batch: int, tokens: int | None = None) -> None:
        self.model, self.ids = model, random_ids(model, batch, tokens or PROMPT[batch])
        self.cache = self.prefill()

    def prefill(self) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        self._run(self.ids, cache, self.ids.shape[1])
        return cache

    def step(self) -> None:
        self._run(self.ids[:, -1:], self.cache, self.cache.get_seq_length() + 1)

    @torch.no_grad()
    def _run(self, ids: torch.Tensor, cache: DynamicCache, length: int) -> None:
        mask = torch.ones(len(ids), length, dtype=torch.long, device=ids.device)
        self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)


class CompiledDecoding:
    """The same in compiled code, with a static cache.

    Attributes:
        kernels: that the compiler wrote for a step, products of large matrices not among them.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        self.ids, self.length = random_ids(model, batch, PROMPT[batch]), PROMPT[batch]
        self.cache = StaticCache(config=model.config, max_cache_len=COMPILED_LENGTH)
        self.mask = torch.zeros(batch, COMPILED_LENGTH, dtype=torch.long, device=self.ids.device)
        self.mask[:, : self.length] = 1
        call = _own_code(model.get_base_model() if hasattr(model, "get_base_model") else model)
        with torch.no_grad():
            call(self.ids, self.mask, self.cache)
        self.call = torch.compile(call, fullgraph=True)
        self.kernels: Counter[str] = Counter()
        for _ in range(4):  # once for this length, once for any
            metrics.reset()
            self.step()
            if metrics.generated_kernel_count:
                self.kernels = Counter(generated=metrics.generated_kernel_count)

    @torch.no_grad()
    def step(self) -> None:
        self.mask[:, self.length] = 1
        self.length += 1
        self.call(self.ids[:, -1:], self.mask, self.cache)


def _own_code(model: nn.Module) -> Callable[..., Any]:
    """A function that calls the model. Each is code of its own: what was compiled is kept, and looked up, by code."""
    names: dict[str, Any] = {"model": model}
    call = "def call(ids, mask, cache):\n"
    call += "    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)"
    exec(call, names)
    return names["call"]


def arms(model: nn.Module, widths: list[str]) -> dict[str, nn.Module]:
    d_in, device = text_config(model).hidden_size, str(next(model.parameters()).device)
    made = {
        "none": twin(model),
        "off": switched_off(guarded(model, 20, fires=False)),
        "idle": guarded(model, 20, fires=False),
        "fires": guarded(model, 20, fires=True),
        "fires N=200": guarded(model, 200, fires=True),
        "fires x4": guarded(model, 20, fires=True, guardrails=4),
    }
    for name in widths:
        made[f"sae {name}"] = with_whole_sae(model, synthetic_sae(d_in, WIDTHS[name], device, threshold=0.5), 20)
    return made | {"lora 16": with_lora(model)}


def check_gates(made: dict[str, nn.Module], batch: int) -> None:
    """A guardrail that is said to fire does so on every row, and one that is said to be quiet on none. The tokens that
    are timed are hot for both, so that where a row fires there is something to edit."""
    for name in [name for name in made if name.startswith(("idle", "fires"))]:
        running = Decoding(made[name], batch)
        with record_firings(made[name]) as firings:
            running.step()
        if {firing.fired for firing in firings} != {name.startswith("fires")}:
            raise SystemExit(f"{name}: {list(firings)}")
        hits = State.of(running.cache.layers[-1].keys[:, 0]).hits
        if not bool((hits[:, -1] > hits[:, -2]).all()):
            raise SystemExit(f"{name}: the token that is timed is not hot.")


def measure(made: dict[str, nn.Module], phase: str, batch: int, seconds: float, clock: str) -> dict[str, Any]:
    """One cell: all arms in one phase at one batch size."""
    device = next(made["none"].parameters()).device.type
    running: dict[str, Any]
    calls: dict[str, Callable[[], Any]]
    if phase == "compiled":
        running = {name: CompiledDecoding(model, batch) for name, model in tqdm(made.items(), desc="compiling")}
        calls = {name: it.step for name, it in running.items()}
    else:
        running = {name: Decoding(model, batch) for name, model in made.items()}
        calls = {name: getattr(it, phase) for name, it in running.items()}
    before = machine(device)["load_average"]
    with torch.no_grad():
        times = interleaved(calls, seconds, clock)
        seen = phase == "compiled" and device == "cpu"  # there compiled code goes past the dispatcher
        counted = {name: it.kernels if seen else kernels(calls[name], device) for name, it in running.items()}
        waiting = {name: waits(call) for name, call in calls.items()}
        memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    cell: dict[str, Any] = {"tokens": PROMPT[batch], "machine": machine(device) | {"load_average_before": before}}
    cell["arms"] = {
        name: compare(times, name, "none")
        | {
            "added_kernels": counted[name].total() - counted["none"].total(),
            "added_waits": waiting[name].total() - waiting["none"].total(),
            "added_peak_bytes": memory[name] - memory["none"],
        }
        for name in made
    }
    for name in [name for name in made if name.startswith("sae")]:
        for ours in ("idle", "fires"):
            cell[f"{name} over {ours}"] = times_less(times, ours, name, "none")
    return cell


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Most memory that was in use during a call, beyond what was in use before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    now = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def table(data: dict[str, Any]) -> str:
    """All cells as text: the ratio to no adapter and the added time of each arm, with 95 % intervals."""
    lines = []
    for key, cell in data["cells"].items():
        tokens = f", {cell['tokens']} tokens a row" if key.startswith("prefill") else ""
        load = " to ".join(str(m[0]) for m in (cell["machine"]["load_average_before"], cell["machine"]["load_average"]))
        base = cell["arms"]["none"]
        lines += [
            "",
            f"{key}{tokens}: {base['ms']:.2f} ms without adapter, {base['rounds']} rounds, "
            f"{cell['machine']['threads']} threads, load {load}",
            f"  {'arm':<13}{'time / none':>11}  {'95 % interval':<18}{'added ms':>9}  {'95 % interval':<20}"
            f"{'kernels':>8}{'waits':>6}{'peak MB':>9}",
        ]
        for name, arm in cell["arms"].items():
            if name != "none":
                lines.append(
                    f"  {name:<13}{arm['ratio']:>11.4f}  {_between(arm, 'ratio', 4):<18}{arm['added_ms']:>9.3f}  "
                    f"{_between(arm, 'added_ms', 3):<20}{arm['added_kernels']:>8}{arm['added_waits']:>6}"
                    f"{arm['added_peak_bytes'] / 1e6:>9.2f}"
                )
        for name, found in cell.items():
            if " over " in name:
                lines.append(f"  {name}: {_times(found)}")
    return "\n".join(lines).lstrip("\n")


def _times(found: dict[str, float]) -> str:
    if found["low"] <= 0:
        return "not told apart by this much noise"
    if found["low"] == float("inf"):
        return "the guardrail adds nothing that could be told from noise"
    if found["high"] == float("inf"):
        return f"adds at least {found['low']:.1f} times as much"
    return f"adds {found['times_less']:.1f} times as much ({found['low']:.1f} to {found['high']:.1f})"


def _between(arm: dict[str, Any], name: str, digits: int) -> str:
    return f"({arm[name + '_low']:.{digits}f} to {arm[name + '_high']:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="demo", help="demo, gemma-2-2b, gemma-3-270m, thin or thin-2b (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the model (default: %(default)s)")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall", help="process: processor time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", choices=list(PROMPT), default=list(PROMPT))
    parser.add_argument("--phases", nargs="+", choices=("step", "prefill", "compiled"), default=["step", "prefill"])
    parser.add_argument("--widths", nargs="*", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="per cell, at least 8 rounds (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="a .json; the table goes beside it as .txt")
    parser.add_argument("--table", action="store_true", help="print the table of --output and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in ("model", "device", "dtype", "threads", "clock", "widths")}
    results = Results(args.output, settings)
    cells = [(phase, batch) for phase in args.phases for batch in args.batches]
    missing = [cell for cell in cells if f"{cell[0]}, batch {cell[1]}" not in results.cells]
    if missing and not args.table:
        made = arms(load(args.model, args.device, getattr(torch, args.dtype)), args.widths)
        for batch in args.batches:
            check_gates(made, batch)
        for phase, batch in tqdm(missing, desc="cells"):
            results.add(f"{phase}, batch {batch}", measure(made, phase, batch, args.seconds, args.clock))
            args.output.with_suffix(".txt").write_text(table(results.data) + "\n", encoding="utf-8")
    print(table(results.data))


if __name__ == "__main__":
    main()
