"""Comparison of a step with the equations of the gate and the edit, for compiled kernels."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.groups import StatisticKwargs, TokenRules
from sae_unlearn.guardrail.config_parts.validation import CHOICES
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import Decision, decide, usual_norm
from sae_unlearn.guardrail.kernels.interface import Step
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


def first_difference(step: Step, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return a description of the first error of a step, or None.

    It runs on two tokens of two small random guardrails, one of each statistic, against float64 on the CPU.

    Args:
        step (Step): The step.
        device (torch.device): Device of the residual stream.
        dtype (torch.dtype): Its dtype.
    """
    generator, (batch, d_in, n) = torch.Generator().manual_seed(0), (8, 70, 21)
    for statistic in CHOICES["statistic"]:
        draw = {"weight": (n, d_in), "bias": (n,), "threshold": (n,), "clamp": (n,)}
        guard = nn.ParameterDict({k: torch.randn(*shape, generator=generator) for k, shape in draw.items()})
        guard["threshold"].data.abs_().mul_(8.0)
        there = nn.ParameterDict({name: parameter.detach().clone() for name, parameter in guard.items()}).to(device)
        history, previous = DynamicGateHistory((0, "check")), None
        masks: list[Tensor] = []
        for config in _configs(statistic, n):
            hidden = torch.randn(batch, 1, d_in, generator=generator).to(dtype)
            hidden[::3] *= 5  # norms of about 40
            ids = torch.randint(0, 9, (batch, 1), generator=generator)
            mask = torch.randint(0, 5, (batch, 1), generator=generator)
            expected, decision = _reference(hidden, ids, mask, guard, config, previous)
            moved, given = hidden.to(device), (ids.to(device), mask.to(device))
            earlier = torch.cat(masks, dim=1).to(device) if masks else None
            masks.append(mask)
            edited = step(moved, moved, there, there, config, ConfigTables(), *given, earlier, history)
            state, previous = history.last(), decision.state[:, -1]
            if state is None or not torch.equal(state.cpu(), previous):
                return f"Gate state of {statistic}: expected {previous.tolist()}, got {state}."
            error = (edited.cpu().double() - expected).abs().max() / expected.abs().max()
            if not error < 4 * torch.finfo(dtype).eps:
                return f"Edit: error of {float(error):.1e} of the largest value."
    return None


def _configs(statistic: str, n: int) -> list[SAEGuardrailConfig]:
    """Return the configs of two tokens; only the first leaves out outliers."""
    if statistic == "windowed":
        guarded = 2 * n // 3
        constants = StatisticKwargs(8, drift=0.4375, bias=-0.75, other_mean=0.125, row_variance=0.05, sum_weight=0.1)
        fields: dict[str, Any] = {
            "gate_feature_ids": [*range(guarded, n)],
            "feature_evidence": [(j % 9 - 3) / 4 for j in range(n)],
            "statistic_kwargs": constants,
        }
        evidence = [fields, fields]
    else:
        guarded, evidence = n, [{"feature_evidence": [j / 4 for j in range(1, n + 1)]}, {}]
    return [
        SAEGuardrailConfig(
            feature_ids=[*range(guarded)],
            statistic=statistic,
            threshold=0.4,
            tokens=TokenRules(special_ids=[1], outlier_norm=norm),
            **fields,
        )
        for fields, norm in zip(evidence, (20.0, None), strict=True)
    ]


def _reference(
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    guard: nn.ParameterDict,
    config: SAEGuardrailConfig,
    previous: Tensor | None,
) -> tuple[Tensor, Decision]:
    """Return the edited stream `[batch, 1, d_in]` in float64, and the decision."""
    pre = hidden[:, 0].double() @ guard["weight"].double().T + guard["bias"]
    counted = (mask != 0) & (ids != 1)
    usual = usual_norm(hidden, config)
    active = (pre > guard["threshold"])[:, None] & (counted if usual is None else counted & usual)[..., None]
    if config.feature_evidence is None:
        hits = active.any(-1).float()
    else:
        hits = (active * torch.tensor(config.feature_evidence)).sum(-1)
    if config.statistic == "windowed":
        hits = hits + config.statistic_kwargs.bias * counted
    decision = decide(hits, counted, config, previous, kept=mask != 0)
    guarded = config.num_features
    where = active[..., :guarded] & decision.fire[..., None]
    change = where * (guard["clamp"] - pre[:, None])[..., :guarded]
    return hidden + change @ guard["weight"][:guarded].double(), decision
