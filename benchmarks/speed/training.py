"""A step of `SAEAlignmentTrainer` against a plain LoRA step on the same tokens, and what the reference pass costs.

    python -m benchmarks.speed.training --output benchmarks/results/training_speed.json

Arms, each a forward and a backward pass: `step` the trainer's loss; `plain` a language modelling loss of the same LoRA
on the same rows in full (targets, entities that stay, and retain rows); `no kl` the trainer's loss without the retain
rows; `reference` the base model's pass over the retain rows alone, which `step` holds. The references of targets and
entities are computed once, before training (`setting`), and kept.
"""

import tempfile
import time
from typing import Any

import torch

from benchmarks.speed.timing import compare, interleaved, machine, timing_parser, write_cell
from sae_unlearn.alignment import EntitySet, SAEAlignmentConfig, SAEAlignmentTrainer
from sae_unlearn.alignment.adapter import retain_logits
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.demo.texts import load_demo_texts


def entities(kind: str, number: int) -> EntitySet:
    """Made-up names: what a step costs does not depend on who they are."""
    return EntitySet(
        [
            {"entity": f"{kind} number {i}", "entity_type": "city", "attributes": {"country": ["Norway"]}}
            for i in range(number)
        ]
    )


def trainer(folder: str, device: str) -> SAEAlignmentTrainer:
    model, tokenizer = load_demo_model()
    args = SAEAlignmentConfig(
        folder,
        init="zero",
        use_cpu=device == "cpu",
        report_to=[],
        disable_tqdm=True,
        min_separation=0.0,
        max_generic_frequency=1.0,
    )
    return SAEAlignmentTrainer(
        model=model,
        args=args,
        sae=load_demo_sae(),
        processing_class=tokenizer,
        train_dataset=entities("Target", 10),
        known=entities("Known", 24),
        unknown=entities("Unlisted", 24),
        retain_dataset=load_demo_texts().retain,
    )


class Arms:
    def __init__(self, it: SAEAlignmentTrainer) -> None:
        self.it, self.model = it, it.model
        self.inputs = it._prepare_inputs(next(iter(it.get_train_dataloader())))
        self.model.train()

    def step(self) -> None:
        self.it.compute_loss(self.model, self.inputs).backward()

    def no_kl(self) -> None:
        weight, self.it.args.kl_weight = self.it.args.kl_weight, 0.0
        try:
            self.step()
        finally:
            self.it.args.kl_weight = weight

    def plain(self) -> None:
        loss = 0.0
        for name in ("input", "still", "retain"):
            ids, mask = self.inputs[f"{name}_ids"], self.inputs["attention_mask" if name == "input" else f"{name}_mask"]
            labels = ids.masked_fill(mask == 0, -100)
            loss = loss + self.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()

    @torch.no_grad()
    def reference(self) -> None:
        with self.model.disable_adapter():
            retain_logits(self.model, self.model.get_base_model(), self.inputs)


def table(cell: dict[str, Any]) -> str:
    head = f"tokens of a step: {cell['tokens']}; {cell['clock']} clock, {cell['machine']['threads']} threads, load "
    lines = [head + str(cell["machine"]["load_average"][0])]
    for name, arm in cell["arms"].items():
        interval = f"({arm['ratio_low']:.3f} to {arm['ratio_high']:.3f})"
        lines.append(
            f"  {name:<10}{arm['ms']:10.0f} ms   time / plain {arm['ratio']:.3f} {interval}, {arm['rounds']} rounds"
        )
    lines.append(f"  references before training: {cell['setting_seconds']:.1f} s, once")
    return "\n".join(lines)


def main() -> None:
    args = timing_parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    now = {"wall": time.perf_counter, "process": time.process_time}[args.clock]
    with tempfile.TemporaryDirectory() as folder:
        start = now()
        arms = Arms(trainer(folder, args.device))
        setting = now() - start
        calls = {name: getattr(arms, name) for name in ("plain", "step", "no_kl", "reference")}
        times = interleaved(calls, args.seconds, args.clock, warmup=1, least=4)
    masks = {"targets": "attention_mask", "stay": "still_mask", "retain": "retain_mask"}
    cell = {
        "tokens": {name: int(arms.inputs[mask].sum()) for name, mask in masks.items()},
        "clock": args.clock,
        "machine": machine(),
        "arms": {name: compare(times, name, "plain") for name in calls},
        "setting_seconds": setting,
    }
    write_cell(args.output, {"threads": args.threads, "clock": args.clock}, "training", cell, table(cell))


if __name__ == "__main__":
    main()
