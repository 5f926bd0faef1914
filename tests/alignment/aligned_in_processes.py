"""A few steps of the tiny alignment, whose weights the first process writes down; also run by launchers."""

import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from tiny_entities import parts, settings
from torch.distributed import init_process_group
from torch.distributed.tensor import DTensor

from sae_unlearn.alignment import SAEAlignmentTrainer
from sae_unlearn.backbone.distributed import leaving_launch


SHARDED = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    },
}

SOLVED = {"init": "closed_form", "retain_budget": 0.02, "min_separation": 0.0, "max_steps": 2, "eval_steps": 1}


def zero(stage: int) -> dict:
    """Settings of a DeepSpeed run with torch's own optimiser, for which nothing has to be compiled."""
    automatic = dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        "auto",
    )
    found = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True, **automatic}
    return {"deepspeed": found, "use_cpu": False}


def align(out: Path, batch: int, **options) -> dict:
    """Train with `batch` targets on every process; weights, logs and the number of processes go to `out`, and the
    adapter to a folder of that name without the suffix."""
    options |= {"per_device_train_batch_size": batch, "optim": "sgd", "learning_rate": 0.1, "eval_strategy": "steps"}
    args = settings(out.with_suffix(""), **{"eval_steps": 2, "ddp_find_unused_parameters": False, **options})
    torch.manual_seed(0)
    trainer = SAEAlignmentTrainer(args=args, **parts())
    trainer.train()
    trainer.save_model(args.output_dir)
    weights = {n: p.detach() for n, p in trainer.model.named_parameters() if "lora_" in n}
    found = {
        "weights": {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in weights.items()},
        "sharded": any(isinstance(p, DTensor) for p in weights.values()),
        "logs": trainer.state.log_history,
        "processes": args.world_size,
        "solution": trainer.solution and trainer.solution.to_dict(),
        "zero": trainer.accelerator.state.deepspeed_plugin and trainer.deepspeed.zero_optimization_stage(),
    }
    if args.process_index == 0:
        torch.save(found, out)
    return found


def shard_on_the_cpu() -> None:
    """accelerate takes FSDP and DeepSpeed for GPUs alone, and ignores them on the CPU; they themselves do not."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


if __name__ == "__main__":
    kind, options = sys.argv[3:], {}
    with leaving_launch():
        if kind == ["closed_form"]:
            options = SOLVED | {"covariance_cache": str(Path(sys.argv[1]).with_name("cache"))}
        elif kind:
            shard_on_the_cpu()
        if kind == ["sharded"]:
            init_process_group("gloo")
            options = SHARDED
        elif kind and not options:
            backend = import_module("deepspeed.comm.torch")
            backend.build_shm_op = lambda: None  # its own all-reduce for one machine, which would be compiled
            options = zero(int(kind[0]))
        align(Path(sys.argv[1]), int(sys.argv[2]), **options)
