"""A model that accelerate has spread with `device_map`."""

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM


def spread(model: nn.Module, folder: Any, device_map: Any) -> nn.Module:
    """The model, saved to `folder` and loaded again with a `device_map`."""
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=str(folder / "off"))


def partly_on_disk(layers: int = 4) -> dict[str, str]:
    """Places for a llama's modules, of which every other layer lies on the disk."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return places | {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(layers)}
