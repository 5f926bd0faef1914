"""`action="refuse"` for packed rows: the message is written into the logits of rows that fired.

It is `guardrail.runtime.refusal` with the row's last tokens read from the table of token ids by slot, so nothing is
counted: preempted rows, drafts and several logits for each row need no care.
"""

import torch
from torch import Tensor

from sae_unlearn.engines.vllm.guard import Guard
from sae_unlearn.engines.vllm.passes import Pass
from sae_unlearn.guardrail.gate.decision import State
from sae_unlearn.guardrail.gate.packed_step import Judged
from sae_unlearn.guardrail.runtime.refusal import LOW


def refuse(logits: Tensor, at: Tensor, guard: Guard, judged: Judged, allowed: Tensor | None, now: Pass) -> Tensor:
    """Return the logits with the next token of the message at rows that fired.

    Args:
        logits (Tensor): `[L, vocabulary]`.
        at (Tensor): `[L]` int64, the token of the pass that each row of logits comes after.
        guard (Guard): The guardrail.
        judged (Judged): What it said of the pass.
        allowed (Tensor, *optional*): `[T]` bool, the tokens of requests that it is on for. None: all.
        now (Pass): The pass.
    """
    assert guard.table is not None
    assert guard.table.ids is not None
    ids = tuple(guard.config.refusal_ids or ())
    message = guard.tables.message(ids, logits.device)  # m_1 ... m_n m_n
    n = len(ids)
    row, position = now.step.rows.of_token[at], now.step.positions[at]
    back = position[:, None] + torch.arange(1 - n, 1, device=at.device)  # the last n places
    slots = now.blocks.slot_of(row[:, None].expand_as(back), back.clamp(min=0))
    last = guard.table.ids[slots].masked_fill(back < 0, -1)
    told = torch.zeros_like(position)
    for k in range(1, n + 1):
        told = torch.where((last[:, n - k :] == message[:k]).all(dim=1), k, told)
    fired = State.of(judged.decision.state).fired_at[at] > 0
    if allowed is not None:
        fired = fired & allowed[at]
    forced = torch.full_like(logits, -LOW)
    forced = forced.scatter(1, message[:1].expand(len(at), 1), -LOW / 2).scatter(1, message[told][:, None], 0.0)
    return torch.where(fired[:, None], forced, logits)
