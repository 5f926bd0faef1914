"""A guardrail on packed rows with its states at the slots of a paged cache, against the same rows alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import BOS, EOS, PAD, planted_config

from benchmarks.speed.kernel_count import kernels, waits
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import State, decide, heard, hits_of, usual_norm
from sae_unlearn.guardrail.gate.packed import Rows, state_size
from sae_unlearn.guardrail.gate.packed_step import PackedStep, judge
from sae_unlearn.guardrail.gate.slot_table import BEGINNING, PADDING, CacheSlots, SlotTable
from sae_unlearn.guardrail.weights import GuardrailDecoder, GuardrailEncoder


EVIDENCE = [0.25, 3.0, 1.5, 2.0, 0.75, 1.0]
WINDOWED = {"statistic": "windowed", "threshold": 0.8, "feature_evidence": [*EVIDENCE, -1.0, 0.5, 0.0]}
WIDTH, BLOCK, TURN = 16, 4, 9


class Setting:
    """A guardrail with random weights, a paged cache, and rows with fixed ids and residual streams."""

    def __init__(self, rows=1, length=24, blocks=64, seed=0, ids=True, known=False, **fields):
        torch.manual_seed(seed)
        fields = {"threshold": 0.4, "gate_scope": "prefix", "feature_evidence": EVIDENCE} | fields
        self.config = planted_config(hidden_size=WIDTH, outlier_norm=6.0, **fields)
        self.encoder, self.decoder = GuardrailEncoder(WIDTH, self.config.num_encoded), GuardrailDecoder(WIDTH, 6)
        nn.init.normal_(self.encoder.weight), nn.init.normal_(self.decoder.weight)
        nn.init.zeros_(self.encoder.bias), nn.init.constant_(self.encoder.threshold, 6.5)
        nn.init.constant_(self.decoder.clamp, -1.0)
        self.tables = ConfigTables(longest=64, vocabulary=40) if known else ConfigTables()
        self.table = SlotTable(blocks * BLOCK, state_size(self.config), longest=64, ids=ids)
        self.ids = torch.randint(0, 40, (rows, length))
        self.hidden = torch.randn(rows, length, WIDTH)
        self.blocks = torch.randperm(blocks)[: rows * (length // BLOCK + 1)].view(rows, -1)

    def slots(self, row, start, stop):
        at = torch.arange(start, stop)
        return self.blocks[row][at // BLOCK] * BLOCK + at % BLOCK

    def step(self, parts, padding=0, **fields):
        """A pass of `(row, start, stop)` of the rows, and their residual stream."""
        lengths = torch.tensor([stop - start for _, start, stop in parts])
        starts = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
        junk = torch.zeros(padding).long()
        counted_up = self.tables.longest is not None and padding == 0 and bool((lengths == 1).all())
        before = [int(self.slots(row, start - 1, start)) if start else BEGINNING for row, start, _ in parts]
        slots = CacheSlots(
            torch.cat([*(self.slots(*part) for part in parts), junk + PADDING]),
            torch.tensor(before),
            torch.tensor([start for _, start, _ in parts]),
            fields.pop("shared", False),
            fields.pop("seeds", None),
        )
        step = PackedStep(
            rows=Rows.of(starts, int(starts[-1]) + padding),
            ids=torch.cat([*(self.ids[row, start:stop] for row, start, stop in parts), junk]),
            positions=torch.cat([*(torch.arange(start, stop) for _, start, stop in parts), junk]),
            prompt_end=starts[:-1],
            slots=slots,
            one_each=padding == 0 and bool((lengths == 1).all()),
            counted_up=torch.tensor([start + 1 for _, start, _ in parts]) if counted_up else None,
        )
        stream = [self.hidden[row, start:stop] for row, start, stop in parts]
        return torch.cat([*stream, torch.full((padding, WIDTH), torch.nan)]), step

    def judge(self, *args, **fields):
        hidden, step = self.step(*args, **fields)
        return judge(hidden, step, self.config, self.encoder, self.decoder, self.tables, self.table)

    def alone(self, row, stop=None):
        """Fired, states and edits of a row by itself, as `SAEGuardrailLayer` computes them."""
        hidden, ids = self.hidden[row, :stop][None], self.ids[row, :stop][None]
        content = ~torch.isin(ids, torch.tensor(self.config.tokens.special_ids))
        a = heard(self.encoder(hidden), content, usual_norm(hidden, self.config))
        hot = hits_of(a, a != 0, self.tables.evidence(self.config, hidden.device), content, self.config)
        ends = None
        if self.config.tokens.boundary_ids:
            ends = torch.isin(ids, torch.tensor(self.config.tokens.boundary_ids))
        decision = decide(hot, content, self.config, ends=ends)
        a = a[..., : self.config.num_features]
        where = decision.fire[..., None] & (a != 0)
        return decision.fire[0], decision.state[0], self.decoder(a, where)[0]


def same(found, expected):
    """The states, the column `kept` left out: it holds the token's number."""
    kept = State._fields.index("kept")
    found, expected = found.clone(), expected.clone()
    found[:, kept] = expected[:, kept] = 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_states_at_slots_follow_rows_through_chunks_decoding_and_recomputation(seed):
    rng = random.Random(seed)
    messages = {"boundary_ids": [TURN], "special_ids": [PAD, BOS, EOS, TURN]}
    paragraphs = WINDOWED | messages | {"message_weight": 0.6, "special_ids": [PAD, BOS, EOS]}
    fields = rng.choice([{}, messages, WINDOWED, WINDOWED | messages, paragraphs])
    rows = rng.randint(1, 4)
    setting = Setting(rows, seed=seed, known=rng.random() < 0.5, **fields)
    done, seen = [0] * rows, [[] for _ in range(rows)]
    while min(done) < 24:
        parts = []
        due = [row for row in range(rows) if done[row] < 24]
        for row in rng.sample(due, rng.randint(1, len(due))):
            if rng.random() < 0.1:  # preempted: its blocks hold what others wrote
                setting.blocks[row] = setting.blocks[row].flip(0)
                done[row], seen[row] = 0, []
            parts.append((row, done[row], done[row] + rng.choice([1, rng.randint(1, 24 - done[row])])))
        judged = setting.judge(parts, padding=rng.choice([0, 0, 2]))
        at = 0
        for row, start, stop in parts:
            cut = slice(at, at + stop - start)
            seen[row].append((judged.decision.fire[cut], judged.decision.state[cut], judged.edit[cut]))
            at, done[row] = at + stop - start, stop
            stamp = int(setting.table.stamps[setting.slots(row, stop - 1, stop)])
            assert stamp == setting.table.stamp_of(setting.ids[row, :stop])
    for row in range(rows):
        fire, state, edit = (torch.cat(parts) for parts in zip(*seen[row], strict=True))
        expected_fire, expected_state, expected_edit = setting.alone(row)
        assert torch.equal(fire, expected_fire)
        same(state, expected_state)
        torch.testing.assert_close(edit, expected_edit, rtol=1e-5, atol=1e-5)


def test_rows_that_begin_with_one_text_in_one_pass_continue_each_other():
    """Two requests share a cached prefix whose states are written in the very pass that reads them, in a chain."""
    setting = Setting(3)
    setting.ids[1:, :8], setting.hidden[1:, :8] = setting.ids[0, :8], setting.hidden[0, :8]
    setting.ids[2, :16], setting.hidden[2, :16] = setting.ids[1, :16], setting.hidden[1, :16]
    setting.blocks[1:, :2] = setting.blocks[0, :2]
    setting.blocks[2, :4] = setting.blocks[1, :4]
    parts = [(2, 16, 24), (0, 0, 20), (1, 8, 20)]
    judged = setting.judge(parts, shared=True)
    expected = [setting.alone(row)[1][start:stop] for row, start, stop in parts]
    same(judged.decision.state, torch.cat(expected))
    assert not judged.lost.any()
    for row, _, stop in parts:
        stamp = setting.table.stamps[setting.slots(row, stop - 1, stop)]
        assert int(stamp) == setting.table.stamp_of(setting.ids[row, :stop])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_a_row_of_which_earlier_tokens_were_not_seen_fires(length, shared):
    setting = Setting(2, threshold=8.0)
    setting.ids[0] = BOS  # not even one that counts
    setting.judge([(0, 0, 4), (1, 0, 8)])
    judged = setting.judge([(0, 8, 8 + length), (1, 8, 8 + length)], shared=shared)
    assert judged.lost.tolist() == [True, False]
    assert judged.decision.fire[:length].all()
    assert not judged.decision.fire[length:].any()
    assert judged.edit[:length].isnan().all()
    assert judged.edit[length:].isfinite().all()


def test_the_stamp_of_a_slot_is_that_of_all_tokens_up_to_it():
    setting = Setting(2)
    setting.judge([(0, 0, 9), (1, 0, 3)], seeds=torch.tensor([0, 77]))
    setting.judge([(0, 9, 10), (1, 3, 4)])
    for row, stop, seed in ((0, 10, 0), (1, 4, 77), (0, 5, 0)):
        stamp = int(setting.table.stamps[setting.slots(row, stop - 1, stop)])
        assert stamp == setting.table.stamp_of(setting.ids[row, :stop], seed)
        other = setting.ids[row, :stop].flip(0)
        assert stamp != setting.table.stamp_of(other, seed)
        assert stamp != setting.table.stamp_of(setting.ids[row, :stop], seed + 1)


def test_copied_blocks_take_their_states_along():
    setting = Setting(1)
    setting.judge([(0, 0, 8)])
    free = next(b for b in range(64) if b not in setting.blocks[0])
    setting.table.copy_blocks([(int(setting.blocks[0, 1]), free)], BLOCK)
    setting.blocks[0, 1] = free
    judged = setting.judge([(0, 8, 12)])
    same(judged.decision.state, setting.alone(0, 12)[1][8:])


# What one guardrail may cost in a pass with one token per row, by operator that computes something.
OPERATORS = {"plain": 31, "weighed": 31, "windowed": 40}


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_decoding_step_takes_few_operators_and_waits_for_no_device(kind):
    fields = {"plain": {"feature_evidence": None}, "weighed": {}, "windowed": WINDOWED}
    fields = fields[kind]
    setting = Setting(3, ids=False, known=True, **fields)
    setting.judge([(row, 0, 8) for row in range(3)])
    hidden, step = setting.step([(row, 8, 9) for row in range(3)])
    parts = setting.config, setting.encoder, setting.decoder, setting.tables, setting.table
    with torch.no_grad():
        judge(hidden, step, *parts)
        found = kernels(lambda: judge(hidden, step, *parts))
        assert 10 < sum(found.values()) <= OPERATORS[kind], found
        assert not waits(lambda: judge(hidden, step, *parts))


def test_a_pass_of_chunks_waits_for_no_device():
    setting = Setting(2)
    hidden, step = setting.step([(0, 0, 8), (1, 0, 5)])
    with torch.no_grad():
        setting.judge([(0, 0, 8), (1, 0, 5)])
        assert not waits(
            lambda: judge(hidden, step, setting.config, setting.encoder, setting.decoder, setting.tables, setting.table)
        )
