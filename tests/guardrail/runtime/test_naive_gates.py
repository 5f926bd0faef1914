"""Beams and drafts are exact where a naive gate is not: with its state on the module, or with drafts judged whole."""

import pytest
import torch
from architecture_case import SCOPES, Case, beam_gap, case
from zoo import ZOO

from sae_unlearn.guardrail import layer as guard_module
from sae_unlearn.guardrail.runtime import hooks as forward_inputs
from sae_unlearn.guardrail.runtime.call_context import CALL
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


class state_on_module:
    """The naive implementation: the gate's history hangs on the module, and the cache's operations miss it."""

    def __enter__(self):
        self.original = guard_module.history_of
        held = {}

        def history_of(cache, owner, past, *_):
            if owner not in held or (isinstance(past, int) and past == 0):
                held[owner] = DynamicGateHistory(owner)
            return held[owner]

        guard_module.history_of = history_of

    def __exit__(self, *_):
        guard_module.history_of = self.original


class drafts_judged_whole:
    """The naive implementation of the sequence scope: the tokens of a draft are judged together, as a prompt is."""

    def __enter__(self):
        self.original = forward_inputs.noted
        forward_inputs.noted = lambda name: None if name == CALL else self.original(name)

    def __exit__(self, *_):
        forward_inputs.noted = self.original


PROBED = ["llama", "mistral", "gemma3", "gpt2", "bloom", "mixtral"]  # of those that can take drafts back


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ZOO)
def test_beams_are_exact_where_state_on_the_module_is_not(architecture):
    it = case(architecture, "prefix", sticky=False)
    for start in range(0, 24, 4):
        rows = it.pool[start : start + 4]
        assert beam_gap(it, rows) < 1e-3
        with state_on_module():
            if beam_gap(it, rows) > 1e-2:
                return
    raise AssertionError("the probe cannot tell the two apart")


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("architecture", PROBED)
@pytest.mark.parametrize("decoding", ["prompt_lookup", "assistant"])
def test_drafts_are_exact_where_state_on_the_module_is_not(decoding, architecture, scope):
    it = case(architecture, scope, sticky=False)
    assert differs_first(it, decoding, state_on_module)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PROBED)
def test_drafts_are_exact_where_judging_a_draft_whole_is_not(architecture):
    it = case(architecture, "sequence", sticky=False)
    assert differs_first(it, "assistant", drafts_judged_whole)


def differs_first(it: Case, decoding, naive) -> bool:
    """Whether the naive gate goes wrong on one of the rows; ours must be right on all of them up to there."""
    how = {"prompt_lookup": {"prompt_lookup_num_tokens": 4}, "assistant": {"assistant_model": it.assistant}}[decoding]
    for row in it.pool:
        row = torch.cat([row, row])
        greedy = it.alone(row)
        assert torch.equal(it.alone(row, **how), greedy)
        with naive():
            if not torch.equal(it.alone(row, **how), greedy):
                return True
    return False
