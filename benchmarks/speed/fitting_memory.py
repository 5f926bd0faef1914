"""Peak memory and disk of a whole fit, and of the authors' procedure, over corpora of two sizes, each in a process of
its own.

    python -m benchmarks.speed.fitting_memory --model demo --rows 400 --output benchmarks/results/fitting_memory.json

Rows are random tokens, which are made as they are read: those of forget text from the lower half of the vocabulary,
those of retain text from all of it. What a fit puts aside for its threshold and its report is bounded by
`max_held_out`, which is set so low that the smaller corpus fills it already; all later rows pass by. A fit leaves the
guardrail's folder on the disk. All weights are read once beforehand: of a file that is mapped only what was read counts
as memory, and a larger corpus reads more of the embedding.

`published` is the whole forward pass with all hidden states; the SAE's activations of all tokens are kept, and written
to the disk to be read again, as in the authors' code.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.speed.models import load_with_sae
from benchmarks.speed.peak_memory import forget_peak, peak_bytes
from benchmarks.speed.timing import machine
from sae_unlearn import SparseAutoencoder, fit_guardrail
from sae_unlearn.backbone.layers import input_device, text_config


GROWTH = 10
LENGTH = 48
BATCH = 8
PROCEDURES = ("fit", "published")


def corpus(vocabulary: int, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Batches of one row of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rows):
        yield {"input_ids": torch.randint(3, vocabulary, (1, LENGTH), generator=generator)}


def measure(procedure: str, model_name: str, rows: int, max_held_out: int, d_sae: int) -> dict[str, int]:
    """Run a procedure over `rows` forget and as many retain rows in this process: its peak memory in bytes, the model
    included, and the bytes that it leaves on the disk."""
    model, sae, layer = load_with_sae(model_name, d_sae, threshold=2.0)
    size = text_config(model).vocab_size
    sides = {"forget": corpus(size // 2, rows, 1), "retain": corpus(size, rows, 2)}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.float().sum()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forget_peak()
        if procedure == "fit":
            guarded = fit_guardrail(
                model,
                None,
                sae,
                **sides,
                layer=layer,
                statistic="ratio",
                max_held_out=max_held_out,
                batch_size=BATCH,
                progress=False,
            )
            guarded.save_pretrained(folder)
        else:
            published(model, sae, layer, sides, Path(folder))
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return {"memory": peak_bytes(next(model.parameters()).device), "disk": disk}


@torch.no_grad()
def published(
    model: nn.Module, sae: SparseAutoencoder, layer: int, sides: dict[str, Iterator[dict[str, Any]]], folder: Path
) -> None:
    """The authors' procedure, as far as memory and disk go."""
    for side, batches in sides.items():
        kept = []
        for some in iter(lambda batches=batches: list(islice(batches, BATCH)), []):
            ids = torch.cat([batch["input_ids"] for batch in some]).to(input_device(model))
            hidden = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
            kept.append(sae.encode(hidden[layer + 1]))
        torch.save(torch.cat(kept), folder / f"{side}.pt")


def measured(args: argparse.Namespace, procedure: str, rows: int) -> dict[str, int]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--model", args.model, "--only", procedure, str(rows)]
    command += ["--max-held-out", str(args.max_held_out), "--d-sae", str(args.d_sae), "--threads", str(args.threads)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, gemma-3-270m or thin (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=400, help="of each side in the smaller corpus")
    parser.add_argument("--max-held-out", type=int, default=64, help="of each use (default: %(default)s)")
    parser.add_argument("--d-sae", type=int, default=4096, help="of the random SAE of random models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--only", nargs=2, metavar=("PROCEDURE", "ROWS"), help="run it over so many rows in this process, and print"
    )
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        procedure, rows = args.only
        print(json.dumps(measure(procedure, args.model, int(rows), args.max_held_out, args.d_sae)))
        return
    found = {
        procedure: {rows: measured(args, procedure, rows) for rows in (args.rows, GROWTH * args.rows)}
        for procedure in PROCEDURES
    }
    text = "\n".join(lines(found))
    print(text)
    if args.output:
        settings = {name: getattr(args, name) for name in ("model", "max_held_out", "d_sae", "threads")}
        cell = settings | {"length": LENGTH, "bytes": found, "machine": machine()}
        args.output.write_text(json.dumps(cell, indent=2) + "\n", encoding="utf-8")
        args.output.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def lines(found: dict[str, dict[int, dict[str, int]]]) -> list[str]:
    """The table of what was measured, and how memory grows."""
    told = [f"rows of {LENGTH} tokens a side   procedure   peak memory, MB   on disk, MB"]
    for procedure, by_rows in found.items():
        for rows, size in by_rows.items():
            told.append(f"{rows:>24}   {procedure:<9}   {size['memory'] / 1e6:>15.0f}   {size['disk'] / 1e6:>11.2f}")
    for procedure, by_rows in found.items():
        small, large = (size["memory"] for size in by_rows.values())
        change = f"{(large - small) / 1e6:+.0f} MB, {large / small:.3f} of the memory"
        told.append(f"{GROWTH} times the corpus, {procedure}: {change}")
    return told


if __name__ == "__main__":
    main()
