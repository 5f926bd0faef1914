"""A forward pass of packed rows as the hooks describe it to the guarded layers."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import State
from sae_unlearn.guardrail.gate.packed_step import Judged, PackedStep
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.gate_history import Owner
from sae_unlearn.guardrail.runtime.recording import Recorder
from sae_unlearn.guardrail.runtime.refusal import note_choices, told
from sae_unlearn.guardrail.weights import LayerGuardrail


class PackedPass(Protocol):
    """Interface of a pass of packed rows, of an engine or of padding-free training.

    Attributes:
        step (PackedStep): The rows.
    """

    @property
    def step(self) -> PackedStep: ...

    def check_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise unless a decoder layer, by its arguments, keeps the rows apart."""

    def judge(self, owner: Owner, hidden: Tensor, guard: LayerGuardrail, tables: ConfigTables) -> Judged:
        """Judge the tokens of the pass, `hidden [T, d_in]`."""

    def last_ids(self, owner: Owner, count: int) -> Tensor:
        """Return the ids of each row's last `count` tokens, `[R, count]`, -1 before its first one."""

    def record(self, owner: Owner, config: SAEGuardrailConfig, judged: Judged, recorders: list[Recorder]) -> None:
        """Note the rows' states after the pass."""


def judge_rows(
    packed: PackedPass,
    owner: Owner,
    guard: LayerGuardrail,
    tables: ConfigTables,
    hidden: Tensor,
    inputs: ForwardInputs,
    recorders: list[Recorder],
) -> Tensor | None:
    """Return the edit of a guardrail on a pass of packed rows, `[1, T, d_in]`, or None if it only records.

    Args:
        packed (PackedPass): The pass.
        owner (Owner): Layer, name and identity of the guardrail.
        guard (LayerGuardrail): Its config, encoder and decoder.
        tables (ConfigTables): The layer's.
        hidden (Tensor): `[1, T, d_in]`, the residual stream after the layer.
        inputs (ForwardInputs): Inputs of the call, in which a refusal is noted.
        recorders (list[Recorder]): Those that listen.
    """
    config = guard.config
    judged = packed.judge(owner, hidden[0], guard, tables)
    if recorders:
        packed.record(owner, config, judged, recorders)
    if config.action == "refuse":
        _refuse_rows(packed, owner, config, judged, tables, inputs)
    return None if judged.edit is None else judged.edit[None]


def _refuse_rows(
    packed: PackedPass,
    owner: Owner,
    config: SAEGuardrailConfig,
    judged: Judged,
    tables: ConfigTables,
    inputs: ForwardInputs,
) -> None:
    """Note the next token of the message after each row that fired, as `refusal.note_refusal` does."""
    ids, rows = tuple(config.refusal_ids or ()), packed.step.rows
    message, last = tables.message(ids, judged.decision.fire.device), rows.last
    count = told(packed.last_ids(owner, len(ids)), message[: len(ids)])
    fired = State.of(judged.decision.state).fired_at > 0
    begun = last - count  # a row without a cache is judged again with the message so far
    refused = fired[last] | ((count > 0) & (begun >= rows.start) & fired[begun.clamp(min=0)])
    following = torch.stack([message[count], message[:1].expand_as(count)], dim=-1)
    choices = message.new_full((len(fired), 2), -1)
    choices[last] = following.masked_fill(~refused[:, None], -1)
    note_choices(choices[None], inputs)
