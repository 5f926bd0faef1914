"""What it costs to begin: importing the package, and attaching a guardrail from disk.

    python -m benchmarks.speed.cold_start --output benchmarks/results/cold_start.json

Each import is a fresh process. `import sae_unlearn` is timed after `import torch, transformers`; after the code of a
model was imported as well, which transformers leaves for when a model is loaded; and after `import peft`, which every
PEFT adapter needs. Attaching is timed beyond reading the
folder's two files with safetensors and json, on the demo's model, with its check against the model's weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from benchmarks.speed.models import guarded, load
from benchmarks.speed.timing import Results, machine, median_interval, timed
from sae_unlearn import attach_guardrail, detach_guardrail


IMPORT = """
import time
import torch, transformers
{before}
now = time.{clock}
start = now()
import sae_unlearn
print(now() - start)
"""
CLOCKS = {"wall": "perf_counter", "process": "process_time"}


def import_seconds(before: str, clock: str) -> float:
    code = IMPORT.format(before=before, clock=CLOCKS[clock])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def attach_seconds(model: Any, folder: Path, clock: str) -> tuple[float, float]:
    """Seconds to read the folder's files, and to attach the guardrail in it."""

    def read() -> None:
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        load_file(folder / "adapter_model.safetensors")

    reading = timed(read, clock)
    attaching = timed(lambda: attach_guardrail(model, folder), clock)
    detach_guardrail(model)
    return reading, attaching


def summary(values: list[float]) -> dict[str, float]:
    low, high = median_interval(np.array(values))
    return {"seconds": float(np.median(values)), "low": low, "high": high, "runs": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="to attach to (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: processor time")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    results = Results(args.output, {"model": args.model, "clock": args.clock})
    imports = {
        "after torch, transformers": "",
        "after those and a model's code": "from transformers import Gemma3ForCausalLM",
        "after those and peft": "import peft",
    }
    found: dict[str, list[float]] = {name: [] for name in imports}
    for _ in tqdm(range(args.runs), desc="imports"):
        for name, before in imports.items():
            found[name].append(import_seconds(before, args.clock))
    model = load(args.model, "cpu", torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        guarded(model, 20, fires=True).save_pretrained(folder)  # into a folder named after the adapter
        artefact = Path(folder) / "topic0"
        attach_seconds(model, artefact, args.clock)
        pairs = [attach_seconds(model, artefact, args.clock) for _ in range(args.runs)]
    found["reading the folder"] = [reading for reading, _ in pairs]
    found["attaching beyond reading"] = [attaching - reading for reading, attaching in pairs]
    cell = {name: summary(values) for name, values in found.items()} | {"machine": machine(), "at": time.strftime("%F")}
    results.add("cold start", cell)
    lines = [
        f"{name:<34}{s['seconds']:8.3f} s  ({s['low']:.3f} to {s['high']:.3f}, {s['runs']} runs)"
        for name, s in cell.items()
        if isinstance(s, dict) and "seconds" in s
    ]
    lines.append(f"clock: {args.clock}, load {cell['machine']['load_average'][0]}")
    args.output.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
