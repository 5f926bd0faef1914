"""The LoRA of a bundle, which may come from anybody: looked at before PEFT sees anything of it.

PEFT's config of a LoRA can name files to read and modules to import, patterns that take hours to match, layers to
repeat and whole modules to put in the place of others. A bundle's LoRA is low-rank matrices beside linear layers and no
more: the fields below may be set, modules are named and not described by a pattern, and everything else stays at PEFT's
default. Its tensors are such matrices, finite, and together no larger than the model they are for.
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
from sae_unlearn.guardrail.layout import CONFIG_NAME, WEIGHTS_NAME


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
    """The config of a bundle's LoRA, if it is one.

    Args:
        stored: as it is in its file, or `LoraConfig.to_dict()`.
        where: what errors call it.

    Raises:
        GuardrailError: it is no LoRA's, or sets what a bundle's may not.
    """
    kind = getattr(stored.get("peft_type"), "value", stored.get("peft_type"))
    if kind != "LORA":
        raise GuardrailError(f"{where} is not that of a LoRA but of {kind!r:.80}.")
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
        raise GuardrailError(f"{where}: {_refused(wrong[0], stored.get(wrong[0]), defaults)}")
    fields = {name: stored[name] for name in checks if stored.get(name) is not None and name != "peft_version"}
    return LoraConfig(**{"task_type": "CAUSAL_LM"} | fields)


def _refused(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """Why a bundle's LoRA may not have a field of that value."""
    if name in _EXPECTED:
        return f"{name}={value!r:.80}: expected {_EXPECTED[name]}. Train or export the LoRA with such a config."
    if name not in known:
        return f"{name}={value!r:.80}: expected a field of PEFT {peft.__version__}. Install a newer PEFT."
    return (
        f"{name}={value!r:.60}: expected {known[name]!r:.30}, since a bundle's LoRA names no files to read, modules to "
        "import or modules to replace. Load it by PEFT, if you trust it."
    )


def as_bundled(config: LoraConfig) -> LoraConfig:
    """The config that a bundle saves: without a task type, PEFT would write which class to import instead."""
    if getattr(config, "task_type", None) is not None:
        return config
    bundled = copy.copy(config)
    bundled.task_type, bundled.auto_mapping = "CAUSAL_LM", None
    return bundled


def put_lora(model: nn.Module, folder: Path, name: str, where: str) -> PeftModel:
    """Put the LoRA in `folder` on a model without adapters, and see that all of it arrived. If any of that fails, the
    model is left as it was.

    Args:
        name: the adapter's.
        where: what errors call the folder.

    Raises:
        GuardrailError: the folder is malformed, or the LoRA does not fit the model.
    """
    stored = read_foreign_json(folder / CONFIG_NAME, _CONFIG_LIMIT, f"{CONFIG_NAME} of {where}")
    if not isinstance(stored, dict):
        raise GuardrailError(f"{CONFIG_NAME} of {where} is not a config but a {type(stored).__name__}.")
    config = check_lora_config(stored, f"{CONFIG_NAME} of {where}")
    tensors = _read_tensors(folder / WEIGHTS_NAME, where, sum(p.numel() for p in model.parameters()))
    trainable = trained(model)
    try:
        # `low_cpu_mem_usage`: room is made for what the file holds, and not for what the config claims
        found = PeftModel.from_pretrained(
            model, os.fspath(folder), adapter_name=name, config=config, low_cpu_mem_usage=True
        )
        arrived = get_peft_model_state_dict(found, adapter_name=name, save_embedding_layers=False)
        if arrived.keys() != tensors.keys():
            odd = sorted(arrived.keys() ^ tensors.keys())
            raise GuardrailError(f"{WEIGHTS_NAME} of {where} does not hold what its config says: {odd[:3]}.")
        for key, tensor in tensors.items():
            if not torch.equal(arrived[key].cpu().to(tensor.dtype), tensor):
                raise GuardrailError(f"{key} of {where} did not arrive on the model as it was read.")
    except BaseException as error:
        take_lora_off(model, trainable)
        if isinstance(error, GuardrailError) or not isinstance(error, Exception):
            raise
        words = " ".join(str(error).split())[:300]
        raise GuardrailError(f"The LoRA {where} does not fit this model ({type(error).__name__}: {words}).") from error
    return found


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def take_lora_off(model: nn.Module, trainable: Iterable[nn.Parameter]) -> None:
    """Put the layers of a bare model back that a LoRA replaced, and thaw the parameters that PEFT froze with it.

    Args:
        trainable: what was trained before.
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
    """The tensors by name, looked at in their header before any is read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            odd = [key for key, shape in shapes.items() if not _TENSOR.fullmatch(key) or not 1 <= len(shape) <= 2]
            if odd or not shapes:
                raise GuardrailError(f"{WEIGHTS_NAME} of {where} holds {odd[:3]}, which are no LoRA's matrices.")
            if sum(map(math.prod, shapes.values())) > largest:
                raise GuardrailError(f"{WEIGHTS_NAME} of {where} holds more numbers than the model itself ({largest}).")
            tensors = {key: file.get_tensor(key) for key in shapes}
    except (SafetensorError, OSError) as error:
        raise GuardrailError(f"{WEIGHTS_NAME} of {where} is not a sound safetensors file: {error}") from error
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise GuardrailError(f"{key} of {where} is {tensor.dtype} or holds values that are not finite.")
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
    """Ranks or alphas by module; the names are patterns to PEFT, in which a dot is the worst."""
    if not value:
        return True
    return isinstance(value, dict) and _are_names(list(value)) and all(sound(each) for each in value.values())
