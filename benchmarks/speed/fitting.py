"""What the forward passes of a fit cost, against bare ones and against the authors' procedure.

    python -m benchmarks.speed.fitting --output benchmarks/results/fitting_speed.json

All arms run the same batches of token ids (rows of 24 to 96 tokens, sorted by length within buckets) in one process in
turns, on the demo's model and SAE: `full` the whole forward pass; `truncated` the same up to the layer; `residuals`
what a fit reads, checks included; `fit` that and the sums over the SAE's activations; `published` the whole forward
pass with all hidden states, and the activations of all tokens kept, as the authors' code does.

The memory of a fit is measured by `fitting_memory.py`.
"""

from typing import Any

import torch
from torch import nn

from benchmarks.speed.models import load_with_sae
from benchmarks.speed.timing import compare, interleaved, machine, timing_parser, write_cell
from sae_unlearn import SparseAutoencoder
from sae_unlearn.backbone.layers import find_decoder_layers, input_device, text_config
from sae_unlearn.backbone.residual_stream import LayerReached, residual_batches, stop_after
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.guardrail.fit.selection import FeatureSums


def corpus(model: nn.Module, number: int) -> list[list[int]]:
    """Rows of random tokens, of 24 to 96."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(24, 97, (number,), generator=generator).tolist()
    vocabulary = text_config(model).vocab_size
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


class Arms:
    def __init__(self, model: nn.Module, sae: SparseAutoencoder, layer: int, rows: list[list[int]], batch: int) -> None:
        self.model, self.sae, self.layer, self.rows, self.batch = model, sae, layer, rows, batch
        self.place = find_decoder_layers(model)
        ordered = sorted(rows, key=lambda row: -len(row))
        padded = [right_padded(ordered[i : i + batch]) for i in range(0, len(rows), batch)]
        self.batches = [tuple(part.to(input_device(model)) for part in parts) for parts in padded]
        self.kept_bytes = 0

    @torch.no_grad()
    def full(self) -> None:
        for ids, kept in self.batches:
            self.model(input_ids=ids, attention_mask=kept.long(), use_cache=False)

    @torch.no_grad()
    def truncated(self) -> None:
        with stop_after(self.place.layers[self.layer]):
            for ids, kept in self.batches:
                try:
                    self.place.backbone(input_ids=ids, attention_mask=kept.long(), use_cache=False)
                except LayerReached:
                    continue

    def residuals(self) -> None:
        for _ in residual_batches(self.model, self.rows, self.layer, self.batch):
            pass

    def fit(self) -> FeatureSums:
        sums = FeatureSums(self.sae)
        for found in residual_batches(self.model, self.rows, self.layer, self.batch):
            sums.add(found.residual[found.kept].float())
        return sums

    @torch.no_grad()
    def published(self) -> None:
        kept_activations = []
        for ids, kept in self.batches:
            out = self.model(input_ids=ids, attention_mask=kept.long(), use_cache=False, output_hidden_states=True)
            kept_activations.append(self.sae.encode(out.hidden_states[self.layer + 1]))
        self.kept_bytes = sum(a.numel() * a.element_size() for a in kept_activations)


def table(cell: dict[str, Any]) -> str:
    lines = [
        f"{cell['rows']} rows, {cell['tokens']} tokens, layer {cell['layer']} of {cell['layers']}, "
        f"d_sae {cell['d_sae']}, "
        f"{cell['clock']} clock, {cell['machine']['threads']} threads, load {cell['machine']['load_average'][0]}"
    ]
    for name, arm in cell["arms"].items():
        lines.append(
            f"  {name:<10}{cell['tokens'] / arm['ms'] * 1e3:10.0f} tokens/s   throughput / truncated "
            f"{1 / arm['ratio']:.3f} ({1 / arm['ratio_high']:.3f} to {1 / arm['ratio_low']:.3f})"
        )
    least = cell["layers"] / (cell["layer"] + 1)
    lines.append(f"  layers / needed layers {least:.2f}; times {0.85} is {0.85 * least:.2f}")
    lines.append(
        f"  activations kept by `published`: {cell['published_bytes'] / 1e6:.0f} MB for these rows; by `fit`: none"
    )
    return "\n".join(lines)


def main() -> None:
    parser = timing_parser(__doc__)
    parser.add_argument("--model", default="demo", help="demo, gemma-3-270m or thin (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, sae, layer = load_with_sae(args.model)
    model, sae = model.to(args.device), sae.to(args.device)
    arms = Arms(model, sae, layer, corpus(model, args.rows), args.batch_size)
    calls = {name: getattr(arms, name) for name in ("truncated", "residuals", "fit", "full", "published")}
    times = interleaved(calls, args.seconds, args.clock, warmup=1, least=5)
    cell = {
        "rows": args.rows,
        "tokens": sum(len(row) for row in arms.rows),
        "layer": layer,
        "layers": len(arms.place.layers),
        "d_sae": sae.d_sae,
        "clock": args.clock,
        "machine": machine(),
        "arms": {name: compare(times, name, "truncated") for name in calls},
        "fit over full": 1 / compare(times, "fit", "full")["ratio"],
        "published_bytes": arms.kept_bytes,
    }
    settings = {"model": args.model, "threads": args.threads, "clock": args.clock}
    write_cell(args.output, settings, "fitting", cell, table(cell))


if __name__ == "__main__":
    main()
