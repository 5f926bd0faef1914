"""The LoRA of a bundle, which is untrusted: checks of its files before PEFT reads them, and attaching.

PEFT's config of a LoRA can name files to read, modules to import, patterns that take hours to match, layers to repeat
and whole modules as replacements. A bundle's LoRA is only low-rank matrices on linear layers: it may set the fields
below, must list modules by name and not by a pattern, and leaves everything else at PEFT's default. Its tensors are
such matrices, finite, and together not larger than the model.
"""

import copy
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sae_unlearn.checks import real
from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.untrusted import read_foreign_json
from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, WEIGHTS_NAME


LARGEST_RANK = 4096
_CONFIG_LIMIT = 2**20
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
_TENSOR = re.compile(r"[A-Za-z0-9_.]{1,400}\.lora_(A\.weight|B\.weight|magnitude_vector|embedding_A|embedding_B)")
_STARTS = (True, False, "gaussian", "orthogonal")  # of `init_lora_weights`; the others compute, read files, or edit
_TEXTS = ("base_model_name_or_path", "revision", "peft_version")
_SWITCHES = ("inference_mode", "fan_in_fan_out", "use_rslora", "use_dora")


_NAMES = "a list of module names"
_EXPECTED = {
    "r": f"an integer from 1 to {LARGEST_RANK}",
    "lora_alpha": "a number above 0",
    "lora_dropout": "a number of at least 0 and below 1",
    "task_type": "'CAUSAL_LM' or None, since a guardrail works on causal language models",
    "init_lora_weights": f"one of {_STARTS}, since the others read files or edit the base",
    "target_modules": f"{_NAMES}, since a pattern can take hours to match",
    "exclude_modules": f"{_NAMES} or None, since a pattern can take hours to match",
    "layers_to_transform": "an index of a layer, or a list of them",
    "layers_pattern": f"{_NAMES} or None",
    "rank_pattern": f"ranks of 1 to {LARGEST_RANK} by module names",
    "alpha_pattern": "numbers above 0 by module names",
    **dict.fromkeys(_TEXTS, "a text or None"),
    **dict.fromkeys(_SWITCHES, "True or False"),
}


def check_lora_config(stored: Mapping[str, Any], where: str) -> LoraConfig:
    """Return the config of a bundle's LoRA.

    Args:
        stored (Mapping[str, Any]): Content of its file, or `LoraConfig.to_dict()`.
        where (str): Its name in errors.

    Raises:
        GuardrailError: If it is not that of a LoRA, or sets a field that a bundle's may not.
    """
    kind = getattr(stored.get("peft_type"), "value", stored.get("peft_type"))
    if kind != "LORA":
        raise GuardrailError(f"{where}: expected peft_type='LORA', got {kind!r:.80}.")
    dropout = real(stored.get("lora_dropout", 0.0))
    checks = {
        "r": _is_rank(stored.get("r")),
        "lora_alpha": _is_positive(stored.get("lora_alpha")),
        "lora_dropout": dropout is not None and 0 <= dropout < 1,
        "task_type": getattr(stored.get("task_type"), "value", stored.get("task_type")) in (None, "CAUSAL_LM"),
        "init_lora_weights": stored.get("init_lora_weights", True) in _STARTS,
        "target_modules": _are_names(stored.get("target_modules")),
        "exclude_modules": stored.get("exclude_modules") is None or _are_names(stored.get("exclude_modules")),
        "layers_to_transform": _are_layers(stored.get("layers_to_transform")),
        "layers_pattern": not stored.get("layers_pattern") or _are_names(stored.get("layers_pattern")),
        "rank_pattern": _is_pattern(stored.get("rank_pattern"), _is_rank),
        "alpha_pattern": _is_pattern(stored.get("alpha_pattern"), _is_positive),
    }
    checks |= {name: isinstance(stored.get(name) or "", str) for name in _TEXTS}
    checks |= {name: isinstance(stored.get(name) or False, bool) for name in _SWITCHES}
    wrong = [name for name, sound in checks.items() if not sound]
    defaults = LoraConfig().to_dict()
    wrong += [
        name
        for name, value in stored.items()
        if name not in (*checks, "peft_type", "runtime_config") and value and value != defaults.get(name)
    ]
    if wrong:
        raise GuardrailError(f"{where}: {_refused(wrong[0], stored.get(wrong[0]), defaults)}.")
    fields = {name: stored[name] for name in checks if stored.get(name) is not None and name != "peft_version"}
    return LoraConfig(**{"task_type": "CAUSAL_LM"} | fields)


def _refused(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """Return the reason why a bundle's LoRA may not have a field of that value."""
    if name in _EXPECTED:
        return f"{name}={value!r:.80}: expected {_EXPECTED[name]}. Train or export the LoRA with such a config."
    if name not in known:
        return f"{name}={value!r:.80}: expected a field of PEFT {peft.__version__}. Install a newer PEFT."
    return (
        f"{name}={value!r:.60}: expected {known[name]!r:.30}, since a bundle's LoRA must not read files, import "
        "modules or replace modules. Load it with PEFT if you trust it."
    )


def as_bundled(config: LoraConfig) -> LoraConfig:
    """Return the config that a bundle saves. Without a task type, PEFT would save a class to import."""
    if getattr(config, "task_type", None) is not None:
        return config
    bundled = copy.copy(config)
    bundled.task_type, bundled.auto_mapping = "CAUSAL_LM", None
    return bundled


def attach_lora(model: nn.Module, folder: Path, name: str, where: str) -> PeftModel:
    """Attach the LoRA in `folder` to a model without adapters, and check that all of it was loaded.

    If that fails, the model is unchanged.

    Args:
        model (Module): A model without adapters.
        folder (Path): Folder of the LoRA.
        name (str): Adapter name.
        where (str): Name of the folder in errors.

    Raises:
        GuardrailError: If the folder is malformed, or the LoRA does not fit the model.
    """
    stored = read_foreign_json(folder / CONFIG_NAME, _CONFIG_LIMIT, f"{CONFIG_NAME} of {where}")
    if not isinstance(stored, dict):
        raise GuardrailError(f"{CONFIG_NAME} of {where}: expected a mapping, got {type(stored).__name__}.")
    config = check_lora_config(stored, f"{CONFIG_NAME} of {where}")
    tensors = _read_tensors(folder / WEIGHTS_NAME, where, sum(p.numel() for p in model.parameters()))
    trainable = trained(model)
    try:
        # `low_cpu_mem_usage`: memory is allocated by the file's size and not by the config's
        found = PeftModel.from_pretrained(
            model, os.fspath(folder), adapter_name=name, config=config, low_cpu_mem_usage=True
        )
        arrived = get_peft_model_state_dict(found, adapter_name=name, save_embedding_layers=False)
        if arrived.keys() != tensors.keys():
            odd = sorted(arrived.keys() ^ tensors.keys())
            raise GuardrailError(f"{WEIGHTS_NAME} of {where} does not fit its config: {odd[:3]} differ.")
        for key, tensor in tensors.items():
            if not torch.equal(arrived[key].cpu().to(tensor.dtype), tensor):
                raise GuardrailError(f"{key} of {where} differs on the model from the file. Attach it again.")
    except BaseException as error:
        detach_lora(model, trainable)
        if isinstance(error, GuardrailError) or not isinstance(error, Exception):
            raise
        words = " ".join(str(error).split())[:300]
        raise GuardrailError(f"The LoRA {where} does not fit this model ({type(error).__name__}: {words}).") from error
    return found


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def detach_lora(model: nn.Module, trainable: Iterable[nn.Parameter]) -> None:
    """Restore the layers that a LoRA replaced, and unfreeze the parameters that PEFT froze.

    Args:
        model (Module): The bare model.
        trainable (Iterable[nn.Parameter]): Parameters that required gradients before.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    for parameter in trainable:
        parameter.requires_grad_()
    if hasattr(model, "peft_config"):
        del model.peft_config


def _read_tensors(path: Path, where: str, largest: int) -> dict[str, Tensor]:
    """Return the tensors by name, after a check of the header."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            odd = [key for key, shape in shapes.items() if not _TENSOR.fullmatch(key) or not 1 <= len(shape) <= 2]
            if odd or not shapes:
                raise GuardrailError(f"{WEIGHTS_NAME} of {where} holds {odd[:3]}: expected matrices of a LoRA.")
            if sum(map(math.prod, shapes.values())) > largest:
                raise GuardrailError(f"{WEIGHTS_NAME} of {where} holds more numbers than the model itself ({largest}).")
            tensors = {key: file.get_tensor(key) for key in shapes}
    except (SafetensorError, OSError) as error:
        raise GuardrailError(f"{WEIGHTS_NAME} of {where} is not a valid safetensors file: {error}") from error
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise GuardrailError(
                f"{key} of {where}: expected finite floating values, got {tensor.dtype} or not finite."
            )
    return tensors


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_RANK


def _is_positive(value: Any) -> bool:
    number = real(value)
    return number is not None and number > 0


def _are_names(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set)):
        return False
    return 0 < len(value) <= 10_000 and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)


def _are_layers(value: Any) -> bool:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < 10_000 for layer in values)


def _is_pattern(value: Any, sound: Any) -> bool:
    """Return True for ranks or alphas by module name. PEFT reads a name as a pattern: only dots may occur."""
    if not value:
        return True
    return isinstance(value, dict) and _are_names(list(value)) and all(sound(each) for each in value.values())
