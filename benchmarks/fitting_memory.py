"""Peak memory of a whole fit over corpora of two sizes, each in a process of its own.

    python benchmarks/fitting_memory.py --model demo --rows 400 --output benchmarks/results/fitting_memory.json

Rows are random tokens, which are made as they are read: those of forget text from the lower half of the vocabulary,
those of retain text from all of it. What a fit puts aside for its threshold and its report is bounded by
`max_held_out`, which is set so low that the smaller corpus fills it already; all later rows pass by.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peak_memory import forget_peak, peak_bytes
from speed_models import load_with_sae
from timing import machine

from sae_unlearn import fit_guardrail
from sae_unlearn.backbone.decoder_layers import text_config


GROWTH = 10
LENGTH = 48


def corpus(vocabulary: int, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Batches of one row of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rows):
        yield {"input_ids": torch.randint(3, vocabulary, (1, LENGTH), generator=generator)}


def fit(model_name: str, rows: int, max_held_out: int, d_sae: int) -> int:
    """Fit over `rows` forget and as many retain rows in this process; its peak memory in bytes, the model included."""
    model, sae, layer = load_with_sae(model_name, d_sae, threshold=2.0)
    size = text_config(model).vocab_size
    sides = {"forget": corpus(size // 2, rows, 1), "retain": corpus(size, rows, 2)}
    forget_peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_guardrail(model, None, sae, **sides, layer=layer, max_held_out=max_held_out, progress=False)
    return peak_bytes(next(model.parameters()).device)


def measured(args: argparse.Namespace, rows: int) -> int:
    """`fit` in a fresh process."""
    command = [sys.executable, __file__, "--model", args.model, "--only", str(rows)]
    command += ["--max-held-out", str(args.max_held_out), "--d-sae", str(args.d_sae), "--threads", str(args.threads)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, gemma-3-270m or thin (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=400, help="of each side in the smaller corpus")
    parser.add_argument("--max-held-out", type=int, default=64, help="of each use (default: %(default)s)")
    parser.add_argument("--d-sae", type=int, default=4096, help="of the random SAE of random models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", type=int, help="fit over so many rows in this process, and print its peak memory")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(fit(args.model, args.only, args.max_held_out, args.d_sae))
        return
    found = {rows: measured(args, rows) for rows in (args.rows, GROWTH * args.rows)}
    for rows, size in found.items():
        print(f"{rows:>8} rows of {LENGTH} tokens a side: peak memory {size / 1e6:.0f} MB")
    small, large = found.values()
    print(f"{GROWTH} times the corpus: {(large - small) / 1e6:+.0f} MB, {large / small:.3f} of the memory")
    if args.output:
        settings = {name: getattr(args, name) for name in ("model", "max_held_out", "d_sae", "threads")}
        cell = settings | {"length": LENGTH, "peak_bytes": found, "machine": machine()}
        args.output.write_text(json.dumps(cell, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
