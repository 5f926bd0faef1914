"""What a guardrail adds beside what its peers add, and what its fit takes beside theirs, in one process in turns.

    python -m benchmarks.speed.peers --model thin --threads 1 --cells "step, batch 1" "step, batch 8" --seconds 20 \\
        --authors-hook intervention.py --output benchmarks/results/peers_speed_thin.json
    python -m benchmarks.speed.peers --threads 1 --cells "step, batch 1" "step, batch 8" "prefill, batch 1" \\
        --seconds 40 --authors-hook intervention.py --output benchmarks/results/peers_speed.json
    python -m benchmarks.speed.peers --threads 1 --cells fit --least 4 --seconds 240 \\
        --authors-statistics activation_collection.py --output benchmarks/results/peers_speed.json

The guardrail is the default of a fit: the windowed gate with 300 features, and 20 that are clamped. Peers: repsteer and
SAELens, if they are installed (`pip install repsteer==0.2.4 sae-lens`); the hook and the feature statistics of DSG's
authors, whose two files are passed by path; the published procedure in a hook, rewritten here in its cheapest form;
and a LoRA of rank 16 of PEFT, not merged. A peer that is missing is named with the reason.

All arms share one set of weights. A figure is a median over rounds of what was timed in the same round, with a 95 %
bootstrap interval. Where peers encode with an SAE it has `--width` features. A run that is cut short goes on with the
cells that are missing. `--table` prints the table of a file that is there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.speed import peer_arms
from benchmarks.speed.inference import Decoding
from benchmarks.speed.kernel_count import kernels
from benchmarks.speed.models import load, random_ids
from benchmarks.speed.peer_arms import arms, edits_one_token
from benchmarks.speed.peer_fits import Fits
from benchmarks.speed.peer_traits import FORMER, OURS
from benchmarks.speed.timing import Results, compare, interleaved, machine, median_interval, times_less, timing_parser
from sae_unlearn import record_firings
from sae_unlearn.backbone.layers import text_config


CELLS = {"step, batch 1": ("step", 1, 128), "step, batch 8": ("step", 8, 64), "prefill, batch 1": ("prefill", 1, 512)}
FIT = "fit"


def check_gates(made: dict[str, nn.Module]) -> None:
    """Raise unless each guardrail fires on every row, or on none, as its name says."""
    for name in ("guardrail, quiet", OURS, FORMER):
        with record_firings(made[name]) as firings:
            Decoding(made[name], 2, 32).step()
        if {firing.fired for firing in firings} != {name.endswith("fires")}:
            raise SystemExit(f"{name}: {list(firings)}")


def measure(made: dict[str, nn.Module], cell: str, seconds: float, least: int, clock: str) -> dict[str, Any]:
    """Time one cell of decoding or of prompts."""
    phase, batch, tokens = CELLS[cell]
    calls = {name: getattr(Decoding(model, batch, tokens), phase) for name, model in made.items()}
    before = machine()["load_average"]
    with torch.no_grad():
        times = interleaved(calls, seconds, clock, least, warmup=1)
        counted = {name: kernels(call, "cpu").total() for name, call in calls.items()}
    return {
        "batch": batch,
        "tokens": tokens,
        "machine": machine() | {"load_average_before": before},
        "arms": {
            name: compare(times, name, "none")
            | {"added_kernels": counted[name] - counted["none"]}
            | {"ours": compare(times, OURS, name), "adds": times_less(times, OURS, name, "none")}
            for name in made
        },
    }


def measure_fits(fits: Fits, seconds: float, least: int, clock: str) -> dict[str, Any]:
    """Time the fits, and what of our own goes into regressions."""
    before = machine()["load_average"]
    times = interleaved(fits.calls, seconds, clock, least, warmup=1)
    regressions = np.array(fits.regressions[-len(times["fit"]) :])
    times["fit without regressions"] = times["fit"] - regressions
    times["LoRA"] = times["LoRA"] * fits.batches
    low, high = median_interval(regressions)
    return {
        "rows": {side: len(ids) for side, ids in fits.sides.items()},
        "length": fits.sides["forget"].shape[1],
        "d_sae": fits.sae.d_sae,
        "layer": fits.layer,
        "layers": text_config(fits.model).num_hidden_layers,
        "machine": machine() | {"load_average_before": before},
        "left_out": fits.left_out,
        "regressions": {"seconds": float(np.median(regressions)), "low": low, "high": high},
        "fit without regressions over its passes": compare(times, "fit without regressions", "truncated, dose"),
        "arms": {name: compare(times, name, "truncated") | {"ours": compare(times, "fit", name)} for name in times},
    }


def table(data: dict[str, Any]) -> str:
    """Return all cells as text."""
    lines = []
    for key, cell in data["cells"].items():
        load_before, load_after = (cell["machine"][name][0] for name in ("load_average_before", "load_average"))
        base = "truncated" if key == FIT else "none"
        found = cell["arms"]
        lines += [
            "",
            f"{key}: {found[base]['ms']:.2f} ms {base}, {found[base]['rounds']} rounds, "
            f"{cell['machine']['threads']} threads, load {load_before} to {load_after}",
            f"  {'arm':<24}{'ms':>10}{'time / ' + base:>18}  {'95 % interval':<18}{'ours / arm':>11}  95 % interval",
        ]
        for name, arm in found.items():
            ours = arm["ours"]
            lines.append(
                f"  {name:<24}{arm['ms']:>10.2f}{arm['ratio']:>18.4f}  {_between(arm):<18}{ours['ratio']:>11.4f}  "
                f"{_between(ours)}"
            )
        if key == FIT:
            spent, passes = cell["regressions"], cell["fit without regressions over its passes"]
            lines.append(f"  regressions {spent['seconds']:.2f} s ({spent['low']:.2f} to {spent['high']:.2f})")
            lines.append(f"  fit without them / its passes {passes['ratio']:.3f} ({_between(passes)})")
        lines += [f"  left out: {name}: {reason}" for name, reason in cell["left_out"].items()]
    return "\n".join(lines).lstrip("\n")


def _between(arm: dict[str, Any]) -> str:
    return f"{arm['ratio_low']:.4f} to {arm['ratio_high']:.4f}"


def main() -> None:
    parser = timing_parser(__doc__)
    parser.add_argument("--model", default="demo", help="demo, gemma-3-270m, thin or thin-2b (default: %(default)s)")
    parser.add_argument("--cells", nargs="+", choices=(*CELLS, FIT), default=[*CELLS, FIT])
    parser.add_argument("--width", type=int, default=16384, help="features of the peers' SAE (default: %(default)s)")
    parser.add_argument("--least", type=int, default=5, help="rounds at least (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="of each side of the fits' corpus (default: %(default)s)")
    parser.add_argument("--length", type=int, default=32, help="tokens of these rows (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of the fits (default: %(default)s)")
    parser.add_argument("--authors-hook", type=Path, help=f"file with {peer_arms.AUTHORS_FUNCTION}")
    parser.add_argument("--authors-statistics", type=Path, help="file with their feature statistics")
    parser.add_argument("--table", action="store_true", help="print the table of --output and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in ("model", "threads", "clock", "width")}
    results = Results(args.output, settings)
    missing = [] if args.table else [cell for cell in args.cells if cell not in results.cells]
    if set(missing) & set(CELLS):
        model = load(args.model, "cpu", torch.float32)
        made, left_out = arms(model, args.width, args.authors_hook)
        check_gates(made)
        edits = edits_one_token(made, random_ids(model, 1, 1))
        for cell in (cell for cell in missing if cell != FIT):
            about = {"left_out": left_out, "edits_one_token": edits}
            results.add(cell, measure(made, cell, args.seconds, args.least, args.clock) | about)
    if FIT in missing:
        fits = Fits(args.model, args.rows, args.length, args.batch_size, args.width // 4, args.authors_statistics)
        results.add(FIT, measure_fits(fits, args.seconds, args.least, args.clock))
    text = table(results.data)
    args.output.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
