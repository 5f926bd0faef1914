"""To know a model again, with the adapters that are in force."""

import hashlib

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def model_key(model: nn.Module) -> str:
    """A short hash of a model's weights and of which adapters are in force, to know it again by.

    Of every parameter the name, shape, dtype and up to 16 values spread over it count: enough to tell a tuned or
    otherwise quantised model from the base. Parameters that are not in memory (`meta`) give their names only.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.is_meta or parameter.numel() == 0:
            continue
        flat = parameter.detach().flatten()
        where = torch.linspace(0, flat.numel() - 1, min(16, flat.numel()), dtype=torch.float64).long()
        digest.update(flat[where.to(flat.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            digest.update(f"{name} {sorted(module.active_adapters)} {module.disable_adapters}".encode())
    return digest.hexdigest()[:16]
