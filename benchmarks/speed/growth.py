"""How the price of a guardrail grows with tokens, rows, features, guarded layers and, of a whole SAE in a hook, width.

    python -m benchmarks.speed.growth --output benchmarks/results/growth_speed.json --picture docs/speed-growth.png

On one decoder layer of Gemma 3 270M's widths, with no head to speak of (eight layers where the number of guarded ones
grows), so that what is added stands out of the noise. All arms of a point run in turns in one process; a point is the
median of what a round took beyond the same model without adapter, with a 95 % bootstrap interval. A run that is cut
short goes on with the points that are missing.

Beside each curve stands its limit, the longer one of two times: the bytes of the weights it reads through the speed at
which this machine reads a matrix in a product with one vector, and its operations through the speed of a large product.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.speed.inference import Decoding
from benchmarks.speed.models import SHAPES, guarded, random_ids, synthetic_sae, twin, with_whole_sae
from benchmarks.speed.timing import Results, compare, interleaved, machine, timed
from sae_unlearn import SAEGuardrailConfig, attach_guardrail


FEATURES, WIDTH, PROMPT = 20, 16384, 32
AXES: dict[str, tuple[int, ...]] = {
    "tokens of a prompt": (8, 32, 128, 512),
    "rows of a decoding step": (1, 2, 4, 8, 16, 32),
    "features, decoding": (5, 20, 80, 320, 1280),
    "guarded layers, decoding": (1, 2, 4, 8),
    "width of the SAE, decoding": (4096, 16384, 65536, 131072),
}
GUARDRAIL, WHOLE = "guardrail", "whole SAE"


def one_layer(layers: int = 1) -> nn.Module:
    """The model that is timed."""
    config = SHAPES["thin"]()
    config.num_hidden_layers, config.layer_types = layers, config.layer_types[:1] * layers
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def guarded_layers(model: nn.Module, number: int) -> nn.Module:
    """A twin with a guardrail at each of the first layers."""
    d_in, bare = model.config.hidden_size, twin(model)
    for layer in range(number):
        config = SAEGuardrailConfig(layer=layer, feature_ids=list(range(FEATURES)), threshold=0.0, clamp_value=-1.0)
        bare = attach_guardrail(bare, config, adapter_name=f"topic{layer}", sae=synthetic_sae(d_in, FEATURES, "cpu"))
    return bare.eval()


def step(model: nn.Module, batch: int = 1) -> Callable[[], Any]:
    """One decoding step after a short prompt."""
    running = Decoding(model, batch, PROMPT)
    return running.step


def prompt(model: nn.Module, tokens: int) -> Callable[[], Any]:
    """A pass over a prompt."""
    ids = random_ids(model, 1, tokens)
    return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1)


def arms(axis: str, value: int) -> dict[str, Callable[[], Any]]:
    """What is run at one point: `none`, and what is compared with it."""
    if axis.startswith("guarded layers"):
        model = one_layer(max(AXES[axis]))
        return {"none": step(twin(model)), GUARDRAIL: step(guarded_layers(model, value))}
    model = one_layer()
    number = value if axis.startswith("features") else FEATURES
    made = {"none": twin(model), GUARDRAIL: guarded(model, number, fires=True)}
    if not axis.startswith("features"):
        width = value if axis.startswith("width") else WIDTH
        sae = synthetic_sae(model.config.hidden_size, width, "cpu", threshold=0.5)
        made[WHOLE] = with_whole_sae(model, sae, FEATURES)
    if axis.startswith("tokens"):
        return {name: prompt(it, value) for name, it in made.items()}
    return {name: step(it, value if axis.startswith("rows") else 1) for name, it in made.items()}


def work(axis: str, value: int, arm: str, d: int) -> tuple[float, float]:
    """Bytes of weights that are read, and operations."""
    tokens = value if axis.startswith(("tokens", "rows")) else 1
    if arm == WHOLE:
        width = value if axis.startswith("width") else WIDTH
        return 8.0 * d * width, 4.0 * tokens * d * width
    number = value if axis.startswith("features") else FEATURES
    times = value if axis.startswith("guarded layers") else 1
    return times * 4.0 * number * (2 * d + 3), times * 4.0 * tokens * number * d


def speeds(clock: str) -> dict[str, float]:
    """Bytes a second of a product with one vector that has to read all of its matrix, and operations a second."""
    matrix, vector, many = torch.randn(32768, 1024), torch.randn(1024), torch.randn(1024, 512)
    reading = min(timed(lambda: matrix @ vector, clock) for _ in range(10))
    counting = min(timed(lambda: matrix[:2048] @ many, clock) for _ in range(10))
    return {"bytes_per_second": matrix.numel() * 4 / reading, "operations_per_second": 2 * 2048 * 1024 * 512 / counting}


@torch.no_grad()
def measure(axis: str, value: int, seconds: float, clock: str) -> dict[str, Any]:
    """One point."""
    calls = arms(axis, value)
    times = interleaved(calls, seconds, clock, most=1000)
    rate, d = speeds(clock), SHAPES["thin"]().hidden_size
    cell: dict[str, Any] = {"machine": machine(), "speeds": rate, "arms": {}}
    for name in [name for name in calls if name != "none"]:
        read, operations = work(axis, value, name, d)
        limit = max(read / rate["bytes_per_second"], operations / rate["operations_per_second"])
        cell["arms"][name] = compare(times, name, "none") | {"limit_ms": 1e3 * limit}
    return cell


def table(data: dict[str, Any]) -> str:
    """All points as text."""
    lines = []
    for axis, values in AXES.items():
        lines += ["", f"{axis:<28}{'arm':<12}{'added ms':>10}  {'95 % interval':<20}{'limit ms':>10}{'load':>7}"]
        for value in values:
            cell = data["cells"].get(f"{axis}, {value}")
            for name, arm in (cell or {"arms": {}})["arms"].items():
                interval = f"({arm['added_ms_low']:.3f} to {arm['added_ms_high']:.3f})"
                lines.append(
                    f"{value:>26}  {name:<12}{arm['added_ms']:>10.3f}  {interval:<20}{arm['limit_ms']:>10.4f}"
                    f"{cell['machine']['load_average'][0]:>7}"
                )
    return "\n".join(lines).lstrip("\n")


def draw(data: dict[str, Any], path: Path) -> None:
    """A panel for each axis, both scales logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.4), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (axis, values) in zip(panels, AXES.items(), strict=True):
        for name, colour in ((GUARDRAIL, "tab:blue"), (WHOLE, "tab:orange")):
            points = [(v, data["cells"].get(f"{axis}, {v}", {"arms": {}})["arms"].get(name)) for v in values]
            points = [(value, arm) for value, arm in points if arm is not None]
            if points:
                at, added = [v for v, _ in points], [a["added_ms"] for _, a in points]
                ends = [[a["added_ms"] - a["added_ms_low"] for _, a in points]]
                ends += [[a["added_ms_high"] - a["added_ms"] for _, a in points]]
                panel.errorbar(at, added, yerr=ends, marker="o", markersize=4, color=colour, label=name)
                limits = [a["limit_ms"] for _, a in points]
                panel.plot(at, limits, linestyle=":", color=colour, label=f"{name}, limit")
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(values, [f"{v // 1024}k" if v >= 4096 else str(v) for v in values])
        panel.minorticks_off()
    panels[0].set_ylabel("added ms")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=("wall", "process"), default="wall", help="process: processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="per point (default: %(default)s)")
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=tuple(AXES))
    parser.add_argument("--output", type=Path, required=True, help="a .json; the table goes beside it as .txt")
    parser.add_argument("--picture", type=Path, help="a .png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.output, {"threads": args.threads, "clock": args.clock})
    points = [(axis, value) for axis in args.axes for value in AXES[axis]]
    for axis, value in tqdm([p for p in points if f"{p[0]}, {p[1]}" not in results.cells], desc="points"):
        results.add(f"{axis}, {value}", measure(axis, value, args.seconds, args.clock))
    args.output.with_suffix(".txt").write_text(table(results.data) + "\n", encoding="utf-8")
    print(table(results.data))
    if args.picture:
        draw(results.data, args.picture)


if __name__ == "__main__":
    main()
