"""One guardrail on a forward pass of packed rows: from residual stream to decisions, states, edits.

An engine describes the pass by a `PackedStep` and calls `judge` at the guarded layer:

| field of the step | vLLM | `generate_batch` of transformers | padding-free training |
|---|---|---|---|
| `rows` | `query_start_loc` | `cu_seq_lens_q` | `cu_seq_lens_q` |
| `prompt_end` | from the prompt's length | last token of a row that begins | last token of the row |
| `slots.of_token` | the slot mapping | `write_index` | None |
| `slots.before` | from the block table | from `read_index` or `block_table` | None |
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailNotReady
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate import packed
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.counted import boundaries, not_special
from sae_unlearn.guardrail.gate.decision import Decision, State, heard, hits_of, hot_tokens, usual_norm
from sae_unlearn.guardrail.gate.packed import Rows
from sae_unlearn.guardrail.gate.slot_table import CacheSlots, SlotTable


@dataclass(frozen=True, kw_only=True)
class PackedStep:
    """Description of a forward pass of packed rows. All tensors are on the model's device.

    Attributes:
        rows (Rows): Which tokens belong to which row.
        ids (Tensor): `[T]` int64, token ids.
        positions (Tensor): `[T]` int64, the place of each token in its own row, from 0.
        prompt_end (Tensor): `[R]` int64, index in the list of the last token of each row's prompt; the row's first
            token in a pass after the prompt. Read for `gate_scope="sequence"` only.
        slots (CacheSlots, *optional*): The tokens' slots in the cache. None if the rows begin and end in this pass.
        one_each (bool, *optional*, defaults to False): Every row has one token, so `T = R`. Known to the host.
        counted_up (Tensor, *optional*): `[T]` int64, `positions + 1`, if the host knows it.
    """

    rows: Rows
    ids: Tensor
    positions: Tensor
    prompt_end: Tensor
    slots: CacheSlots | None = None
    one_each: bool = False
    counted_up: Tensor | None = None

    @property
    def number(self) -> Tensor:
        """`[T]`: the number of each token in its row, from 1."""
        return self.positions + 1 if self.counted_up is None else self.counted_up

    @property
    def row(self) -> Tensor | slice:
        """An index from values by row to values by token."""
        return slice(None) if self.one_each else self.rows.of_token

    def boundary(self, config: SAEGuardrailConfig) -> Tensor:
        """Return `[R]`: index in the list from which tokens are judged one by one, see `packed`."""
        return self.rows.start if config.gate_scope == "prefix" else self.prompt_end


class Judged(NamedTuple):
    """Result of a guardrail on a pass.

    Attributes:
        decision (Decision): `fire [T]` bool and `state [T, S]`; `gate.State.of(state)` names the columns.
        where (Tensor or None): `[T, N]` bool, the features that are clamped; None if the guardrail only records.
        edit (Tensor or None): `[T, d_in]`, to be added to the residual stream in float32; None if the guardrail only
            records.
        lost (Tensor or None): `[R]` bool, the rows with unseen earlier tokens; None without a table.
    """

    decision: Decision
    where: Tensor | None
    edit: Tensor | None
    lost: Tensor | None


def judge(
    hidden: Tensor,
    step: PackedStep,
    config: SAEGuardrailConfig,
    encoder: Any,
    decoder: Any,
    tables: ConfigTables,
    table: SlotTable | None = None,
) -> Judged:
    """Judge the tokens of a pass and keep their states.

    It computes what `SAEGuardrailLayer` does for a padded batch. A row with unseen earlier tokens fires, its
    edit is NaN, and so are its logits.

    Args:
        hidden (Tensor): `[T, d_in]`, the residual stream after the guarded layer.
        step (PackedStep): The pass.
        config (SAEGuardrailConfig): The guardrail's.
        encoder, decoder (nn.Module): `GuardrailEncoder` and `GuardrailDecoder`, in float32.
        tables (ConfigTables): The config's lists as tensors.
        table (SlotTable, *optional*): The states by slot. None if the rows begin and end in this pass.

    Raises:
        GuardrailError: If packed rows cannot be judged, see `packed.check_packable`.
    """
    number = step.number
    past = _Past.none(hidden, step, config) if table is None else _Past.of(table, step, number)
    activations = encoder(hidden)
    content = not_special(config, tables, step.ids, hidden.device)
    if content is None:
        content = torch.ones_like(step.ids, dtype=torch.bool)
    activations = heard(activations, content, usual_norm(hidden, config), tables.zero(hidden.device))
    if past.lost is not None:
        activations = activations.masked_fill(past.lost[step.row, None], torch.nan)
    active = activations != 0
    hot = hits_of(activations, active, tables.evidence(config, hidden.device), content, config)
    ends = boundaries(config, tables, step.ids, hidden.device)
    boundary = step.boundary(config)
    if step.one_each and past.source is None:
        by_count, also = tables.by_count(config, hidden.device), []
        if table is not None and past.stamps is not None:
            also = table.columns(table.next_stamps(past.stamps, step.ids))
        decision = packed.decide_one_each(hot, content, config, past.states, ends, number, by_count, also)
        entries = decision.state
        decision = decision._replace(state=entries[:, : packed.state_size(config)])
    else:
        decision = packed.decide(hot, content, config, step.rows, past.states, boundary, ends, number)
        for _ in range(past.depth(step.rows)):
            states = past.continued(past.states, decision.state)
            decision = packed.decide(hot, content, config, step.rows, states, boundary, ends, number)
        entries = decision.state
        if table is not None and past.stamps is not None:
            columns = table.columns(_stamps(table, past.stamps, past, step, number))
            entries = torch.cat([entries, torch.stack(columns, dim=1)], dim=1)
    if table is not None and step.slots is not None:
        table.entries[step.slots.of_token] = entries
        if table.ids is not None:
            table.ids[step.slots.of_token] = step.ids
    if config.action == "record":
        return Judged(decision, None, None, past.lost)
    clamped = active[:, : config.num_features]
    if config.clamp_mode == "fired":
        where = decision.fire[:, None] & clamped
    else:
        where = (decision.fire & hot_tokens(active, hot, config))[:, None].expand_as(clamped)
    return Judged(decision, where, decoder(activations[:, : config.num_features], where), past.lost)


_NUMBER = State._fields.index("kept")  # which holds the token's number in its row


class _Past(NamedTuple):
    """The states before a pass.

    Attributes:
        states (Tensor): `[R, S]`, zeros at a row's beginning.
        lost (Tensor, *optional*): `[R]` bool, the rows with unseen earlier tokens; None without a table.
        stamps (Tensor, *optional*): `[R]` int64, None if the table has none.
        source (Tensor, *optional*): `[R]`, the token of this pass that a row continues, -1 if it is of an earlier pass;
            None if all are.
    """

    states: Tensor
    lost: Tensor | None = None
    stamps: Tensor | None = None
    source: Tensor | None = None

    @classmethod
    def none(cls, hidden: Tensor, step: PackedStep, config: SAEGuardrailConfig) -> "_Past":
        return cls(hidden.new_zeros(len(step.rows.start), packed.state_size(config), dtype=torch.float32))

    @classmethod
    def of(cls, table: SlotTable, step: PackedStep, number: Tensor) -> "_Past":
        if step.slots is None:
            raise GuardrailNotReady("slots=None: expected the cache slots of a pass that has a table. Pass them.")
        entries, source = table.entries[step.slots.before], None
        states, stamps = entries[:, : table.size], None
        if table.stamps is not None:
            stamps = table.stamps_of(entries)
            stamps = stamps if step.slots.seeds is None else stamps + step.slots.seeds
        seen = states[:, _NUMBER]
        if step.slots.shared:
            source = _sources(step.slots)
            seen = torch.where(source < 0, seen, number[source.clamp(min=0)])
        lost = seen != step.slots.computed
        # A lost row has fired, whatever the slot holds. Its hot sum becomes NaN with the activations.
        states = states.masked_fill(lost[:, None], 1.0)
        return cls(states, lost, stamps, None if source is None else source.masked_fill(lost, -1))

    def depth(self, rows: Rows) -> int:
        """Links of the longest chain of rows, each of which continues another of the same pass."""
        if self.source is None:
            return 0
        links = torch.where(self.source < 0, -1, rows.of_token[self.source.clamp(min=0)]).tolist()
        depths, deeper = [-1], [0] * len(links)
        while deeper != depths:
            depths, deeper = deeper, [0 if link < 0 else deeper[link] + 1 for link in links]
        return max(depths, default=0)

    def continued(self, before: Tensor, of_pass: Tensor) -> Tensor:
        """Return values by row before a pass; for rows that continue a token of the pass, that token's."""
        assert self.source is not None
        earlier = self.source < 0
        return torch.where(earlier if before.ndim == 1 else earlier[:, None], before, of_pass[self.source.clamp(min=0)])


def _sources(slots: CacheSlots) -> Tensor:
    """Return `[R]`: the token of this pass that is written to each row's slot before; -1 if none is."""
    ordered, order = slots.of_token.sort()
    at = torch.searchsorted(ordered, slots.before).clamp(max=len(order) - 1)
    return torch.where((slots.before >= 0) & (ordered[at] == slots.before), order[at], -1)


def _stamps(table: SlotTable, stamps: Tensor, past: _Past, step: PackedStep, number: Tensor) -> Tensor:
    """Return the stamp after each token of a pass, `[T]`, from those before it, `[R]`."""
    assert step.slots is not None
    row, summands = step.rows.of_token, table.summands(step.ids, number)
    sums = summands.cumsum(dim=0)
    sums = sums - (sums - summands)[step.rows.start.clamp(max=len(sums) - 1)][row]
    earlier = table.to_sum(stamps, step.slots.computed)
    for _ in range(past.depth(step.rows)):
        earlier = past.continued(earlier, earlier[row] + sums)
    return table.from_sum(earlier[row] + sums, number)
