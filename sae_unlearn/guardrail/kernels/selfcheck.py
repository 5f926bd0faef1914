"""Comparison of a step with the equations of the gate and the edit, for compiled kernels."""

import torch
from torch import nn

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_groups import TokenRules
from sae_unlearn.guardrail.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate import decide, usual_norm
from sae_unlearn.guardrail.kernels.interface import Step
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


def first_difference(step: Step, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return a description of the first error of a step, or None.

    It runs on two tokens of a small random guardrail, against float64 on the CPU.

    Args:
        step (Step): The step.
        device (torch.device): Device of the residual stream.
        dtype (torch.dtype): Its dtype.
    """
    generator, (batch, d_in, n) = torch.Generator().manual_seed(0), (8, 70, 21)
    draw = {"weight": (n, d_in), "bias": (n,), "threshold": (n,), "clamp": (n,)}
    guard = nn.ParameterDict({k: torch.randn(*shape, generator=generator) for k, shape in draw.items()})
    guard["threshold"].data.abs_().mul_(8.0)
    there = nn.ParameterDict({name: parameter.detach().clone() for name, parameter in guard.items()}).to(device)
    config = SAEGuardrailConfig(feature_ids=[*range(n)], threshold=0.4, tokens=TokenRules(special_ids=[1]))
    history, previous = DynamicGateHistory((0, "check")), None
    masks: list[torch.Tensor] = []
    for config.feature_evidence, norm in (([j / 4 for j in range(1, n + 1)], 20.0), (None, None)):
        config.tokens = TokenRules(special_ids=[1], outlier_norm=norm)
        hidden = torch.randn(batch, 1, d_in, generator=generator).to(dtype)
        hidden[::3] *= 5  # norms of about 40
        ids = torch.randint(0, 9, (batch, 1), generator=generator)
        mask = torch.randint(0, 5, (batch, 1), generator=generator)
        pre = hidden[:, 0].double() @ guard["weight"].double().T + guard["bias"]
        counted = (mask != 0) & (ids != 1)
        active = (pre > guard["threshold"])[:, None]
        evidence = config.feature_evidence
        said = active.any(-1).float() if evidence is None else (active * torch.tensor(evidence)).sum(-1)
        usual = usual_norm(hidden, config)
        hot = counted if usual is None else counted & usual
        decision = decide(said * hot, counted, config, previous, kept=mask != 0)
        where = active & (decision.fire & hot)[..., None]
        expected = hidden + (where * (guard["clamp"] - pre[:, None])) @ guard["weight"].double()
        moved, given = hidden.to(device), (ids.to(device), mask.to(device))
        earlier = torch.cat(masks, dim=1).to(device) if masks else None
        masks.append(mask)
        edited = step(moved, moved, there, there, config, ConfigTables(), *given, earlier, history)
        state, previous = history.last(), decision.state[:, -1]
        if state is None or not torch.equal(state.cpu(), previous):
            return f"Gate state: expected {previous.tolist()}, got {state}."
        error = (edited.cpu().double() - expected).abs().max() / expected.abs().max()
        if not error < 4 * torch.finfo(dtype).eps:
            return f"Edit: error of {float(error):.1e} of the largest value."
    return None
