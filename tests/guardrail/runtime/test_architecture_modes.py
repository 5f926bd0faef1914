"""Every architecture of the zoo through every way a model is run: `test_mode[llama-static_cache-prefix]`.

Where an architecture cannot do something by itself (`UNSUPPORTED`), transformers' own error must come through.
"""

import pytest
from architecture_case import SCOPES, case
from forward_modes import gradient_checkpointing, hidden_states, padding_side, plain_forward, taken_off
from generation_modes import (
    assistant,
    beams,
    chunked_prefill,
    left_padded_greedy,
    prompt_lookup,
    sampling,
    second_turn,
    static_cache,
)
from zoo import LAYERS, ZOO

from sae_unlearn.backbone.checkpointing import HOOKS_OUTSIDE
from sae_unlearn.errors import GuardrailUnsupported


STATEFUL = ("falcon_h1", "qwen3_next", "mamba")
BOTH = {
    f.__name__: f
    for f in (
        plain_forward,
        taken_off,
        padding_side,
        hidden_states,
        gradient_checkpointing,
        left_padded_greedy,
        sampling,
        static_cache,
        prompt_lookup,
        assistant,
    )
}
PREFIX = {f.__name__: f for f in (beams, chunked_prefill, second_turn)}
MODES = BOTH | PREFIX
UNSUPPORTED = {
    **dict.fromkeys([(n, m) for n in STATEFUL for m in ("prompt_lookup", "assistant")], "not supported with stateful"),
    # transformers before 5.24, and from then on
    ("mamba", "chunked_prefill"): "Cannot use prefill chunking without a cache|can only be called on Attention layers",
    ("mamba", "second_turn"): "expected one token after those in a recurrent cache",
}
COLUMNS = ("llama", "falcon_h1")  # every mode in every scope: attention alone, and attention beside a recurrent state


def tier(architecture: str, mode: str, scope: str) -> list[pytest.MarkDecorator]:
    """Outside the columns each mode takes one of the scopes in turn, so that every pair is tried; nightly has all.

    The fast tier tries every architecture in one mode, and every mode on one architecture.
    """
    turn = list(ZOO).index(architecture) + list(MODES).index(mode)
    in_turn = mode in PREFIX or scope == SCOPES[turn % len(SCOPES)]
    if in_turn and (architecture == "llama" or mode == "plain_forward"):
        return []
    return [pytest.mark.slow if in_turn or architecture in COLUMNS else pytest.mark.nightly]


@pytest.mark.parametrize(
    ("architecture", "mode", "scope"),
    [
        pytest.param(
            architecture, mode, scope, id=f"{architecture}-{mode}-{scope}", marks=tier(architecture, mode, scope)
        )
        for architecture in ZOO
        for scope in SCOPES
        for mode in (MODES if scope == "prefix" else BOTH)
    ],
)
def test_mode(architecture, mode, scope):
    it = case(architecture, scope)
    if mode == "gradient_checkpointing" and not HOOKS_OUTSIDE:
        with pytest.raises(GuardrailUnsupported, match=r"^gradient_checkpointing=True: expected transformers >= 5\.23"):
            MODES[mode](it)
    elif (architecture, mode) in UNSUPPORTED:
        with pytest.raises(ValueError, match=UNSUPPORTED[architecture, mode]):  # of transformers
            MODES[mode](it)
    else:
        MODES[mode](it)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "scope"), [(mode, scope) for scope in SCOPES for mode in (MODES if scope == "prefix" else BOTH)]
)
def test_mode_with_signed_scores(mode, scope):
    """Of a statistic whose sums can fall, and whose gate reads features of its own."""
    if mode == "gradient_checkpointing" and not HOOKS_OUTSIDE:
        pytest.skip("refused, whatever the statistic")
    MODES[mode](case("llama", scope, statistic="windowed"))


def test_the_zoo_holds_what_the_readme_claims():
    assert len(ZOO) >= 14
    assert {"mixtral", "gpt_oss", "falcon_h1", "qwen3_next", "mamba"} <= ZOO.keys()
    assert LAYERS == 4
