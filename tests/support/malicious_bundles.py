"""Folders of a bundle that lie: of a guardrail "topic" and a LoRA "aligned"; see `malicious_guardrails`."""

import os
import pickle

import torch
from edited_json import edited_json
from lies import CONFIG, HUGE, WEIGHTS, Payload, config, config_bytes, pipe_for_weights, trace_of
from safetensors.torch import load_file, save_file


LORA = "aligned"  # of the bundle that the lies change: beside a guardrail "topic"


def bundle(**fields):
    return edited_json("bundle.json", **fields)


def bundle_text(text):
    return lambda folder: (folder / "bundle.json").write_text(text)


def renamed(name):
    """The guardrail under another name."""

    def lie(folder):
        (folder / "topic").rename(folder / name)
        bundle(guardrails=[name])(folder)

    return lie


def of_lora(lie):
    """A lie about a guardrail's folder, told of the LoRA's."""
    return lambda folder: lie(folder / LORA)


def lora_weights(change):
    def lie(folder):
        path = folder / LORA / WEIGHTS
        save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path)

    return lie


def lora_pickle(folder):
    path = folder / LORA / WEIGHTS
    path.unlink()
    path.with_name("adapter_model.bin").write_bytes(pickle.dumps(Payload(trace_of(folder))))


def lora_config_without_end(folder):
    os.truncate(folder / LORA / CONFIG, 2**40)


BACKTRACKS = "(([a-z_.0-9]+)+)+!"
BUNDLES = {
    "bundle: version a switch": (bundle(format_version=True), "format_version=True"),
    "bundle: a key said twice": (
        bundle_text('{"format_version": 1, "guardrails": ["x"], "guardrails": ["topic"], "lora": null}'),
        "'guardrails' twice",
    ),
    "bundle: a key of tomorrow": (bundle(code="x"), "unknown key"),
    "bundle: nests": (bundle_text("[" * 60_000), "is not JSON"),
    "bundle: names that look alike": (bundle(guardrails=["topic", "\uff54opic"], lora=None), "occurs once"),
    "bundle: names that one file system takes for one": (bundle(guardrails=["topic", "Topic"]), "occurs once"),
    "bundle: a name that torch has": (renamed("keys"), "adapter_name="),
    "bundle: a name that torch calls": (renamed("train"), "adapter_name="),
    "bundle: a LoRA that is a pickle": (lora_pickle, "has no adapter_model.safetensors"),
    "bundle: a LoRA's weights a pipe": (of_lora(pipe_for_weights), "has no adapter_model.safetensors"),
    "bundle: a LoRA's config without an end": (lora_config_without_end, "more than"),
    "bundle: a LoRA's config nests": (of_lora(config_bytes(b'{"a":' * 100_000)), "is not JSON"),
    "bundle: a LoRA's config a list": (of_lora(config_bytes(b"[1]")), "got list"),
    "bundle: a LoRA of another shape": (lora_weights(lambda t: {k: v[:1] for k, v in t.items()}), "does not fit"),
    "bundle: a LoRA of which a half is missing": (lora_weights(lambda t: dict(list(t.items())[::2])), "does not "),
    "bundle: a LoRA of NaN": (lora_weights(lambda t: {k: v * torch.nan for k, v in t.items()}), "not finite"),
    "bundle: a LoRA that brings a head": (
        lora_weights(lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(97, 32)}),
        "matrices of a LoRA",
    ),
    "bundle: a LoRA larger than the model": (
        lora_weights(lambda t: t | {"base_model.model.x.lora_A.weight": torch.zeros(4096, 4096)}),
        "more numbers than the model",
    ),
    "bundle: a LoRA of endless rank": (of_lora(config(r=2**40)), "r=1099511627776"),
    "bundle: a LoRA whose rank is a switch": (of_lora(config(r=True)), "r=True"),
    "bundle: a LoRA of another rank": (of_lora(config(r=4096)), "does not fit"),
    "bundle: a LoRA scaled without end": (of_lora(config(lora_alpha=HUGE)), "lora_alpha=1"),
    "bundle: a LoRA whose pattern never ends": (of_lora(config(target_modules=BACKTRACKS)), "target_modules="),
    "bundle: a LoRA that leaves out by such a pattern": (
        of_lora(config(exclude_modules=BACKTRACKS)),
        "exclude_modules=",
    ),
    "bundle: a LoRA with ranks by such a pattern": (of_lora(config(rank_pattern={BACKTRACKS: 4})), "rank_pattern="),
    "bundle: a LoRA on what is no linear layer": (of_lora(config(target_modules=["norm"])), "does not fit"),
    "bundle: a LoRA on modules that are not there": (of_lora(config(target_modules=["nothing"])), "does not fit"),
    "bundle: a LoRA that reads a file": (
        of_lora(config(init_lora_weights="corda", corda_config={"cache_file": "/etc/passwd"})),
        "read files",
    ),
    "bundle: a LoRA that repeats layers": (of_lora(config(layer_replication=[[0, 4]] * 2000)), "layer_replication="),
    "bundle: a LoRA that replaces modules": (of_lora(config(modules_to_save=["lm_head"])), "modules_to_save="),
    "bundle: a LoRA that imports": (of_lora(config(megatron_config={"a": 1}, megatron_core="os")), "expected None"),
    "bundle: a LoRA with a class to import": (of_lora(config(auto_mapping={"parent_library": "os"})), "expected None"),
    "bundle: a LoRA with a key of tomorrow": (of_lora(config(run="x")), "run='x'"),
    "bundle: a LoRA for another task": (of_lora(config(task_type="SEQ_CLS")), "task_type='SEQ_CLS'"),
    "bundle: a LoRA that is none": (of_lora(config(peft_type=["LORA"])), "peft_type='LORA'"),
}
