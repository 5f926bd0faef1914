"""The gate: from hot tokens to a decision, with a state that continues from pass to pass.

Per token `t` of a row: `hot_t` (1 if some guarded feature is active; with `feature_evidence` the sum of the active
features' log-likelihood ratios, 0 if none is active; 0 if the norm of the residual stream is above `outlier_norm`) and
`counted_t` (it is content: the attention mask keeps it and it is not a special token; a token that is not counted is
never hot). With the running sums

    H_t = sum_{s<=t} hot_s          N_t = sum_{s<=t} counted_s

and `m = min_tokens`, the statistics are

    ratio       S_t = H_t / max(N_t, m)
    windowed    S_t = max(z_t, sum_weight * P_t), of signed scores in place of hot_t; see `gate.windowed`

If the config names the tokens between a conversation's messages, the statistic of each message is taken too
(`message_statistic`). The row fires iff `S > threshold`, strictly. `max(N, m)` is the policy for short rows: a row
shorter than `min_tokens` counts as if quiet tokens filled it up, so that one hot token out of one does not give a rate
of 1.

A forward pass also has a **boundary** `b`: the first position whose logits were requested. Tokens before it share the
decision at it; from it on each token has its own. Under `gate_scope="sequence"` this gives the paper's rule: a prompt
is judged as a whole (`generate` requests its last position only), and so is every plain forward pass (`b` is the last
position). In assisted decoding the drafted tokens are requested one by one, so each is judged as if it had been
generated alone, and a rejected draft leaves no trace. Under `gate_scope="prefix"` the boundary is 0: every token is
judged by the tokens up to it.

The row's cache stores that it fired (`cache_state`). With `use_cache=False` every step is a pass over the whole row,
judged again. Under `"prefix"` the result is the same. Under `"sequence"` a row whose ratio falls back below the
threshold no longer counts as fired.

**Not finite.** A token that the mask keeps, and whose activations are NaN or infinite, adds NaN to `H`, and NaN exceeds
every threshold: the row fires at once and stays fired, and the edit at that token is NaN (fail closed). No device sync
is needed. Tokens in a static cache that the guardrail has not seen reach the gate in this way (see
`runtime.cache_state`).

All counts are whole numbers, or quarters, in float32, so the statistics do not depend on batch size, padding side or
the division of a sequence into forward passes.

Source: Muhamed et al. 2025 (arXiv 2504.08192), section 4, for `ratio`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.message_statistic import by_message, share_of
from sae_unlearn.guardrail.gate.windowed import mean_part, message_part, windowed_value


class State(NamedTuple):
    """The gate's state of a row after a token: numbers of one row, or columns of a tensor of states.

    Attributes:
        hits: `H`.
        tokens: `N`.
        lowest: `L` of windowed; 0 of ratio.
        peak: `P` of windowed; the statistic of ratio.
        fired_at: Number of counted tokens when the row fired; 0 if it has not.
        kept: 1 if the mask shows the token, special or not. It describes that token only.
    """

    hits: Any
    tokens: Any
    lowest: Any
    peak: Any
    fired_at: Any
    kept: Any

    @classmethod
    def of(cls, states: Tensor) -> "State":
        """Return the columns of `states [..., STATE_SIZE]`, each a view `[...]`.

        Columns of messages come after them.
        """
        return cls(*states.unbind(dim=-1)[:STATE_SIZE])


STATE_SIZE = 6


class Decision(NamedTuple):
    """Decision of the gate about one forward pass.

    Attributes:
        fire (Tensor): `[batch, seq]` bool, the guardrail acts at that token's position.
        state (Tensor): `[batch, seq, STATE_SIZE]` float32, with messages `MESSAGES_SIZE` more. Entry `t` is the state
            as if the pass had ended at `t`.
    """

    fire: Tensor
    state: Tensor


def heard(activations: Tensor, eligible: Tensor, usual: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
    """Return `activations [batch, seq, N]` at tokens that can be hot, and 0 at all others.

    Args:
        activations (Tensor): 0 if a feature is inactive; otherwise positive, infinite or NaN.
        eligible (Tensor): `[batch, seq]` bool, the tokens that can be hot.
        usual (Tensor, *optional*): `[batch, seq]` bool, from `usual_norm`. None: no token is an outlier. Activations
            that are not finite become NaN at outliers too.
        zero (Tensor, *optional*): `[1]`, a 0 of the activations' dtype. It is made if it is not given.
    """
    if usual is not None:
        activations = activations * usual[..., None]
    return torch.where(eligible[..., None], activations, 0 if zero is None else zero)


def hits_of(
    activations: Tensor, active: Tensor, evidence: Tensor | None, counted: Tensor, config: SAEGuardrailConfig
) -> Tensor:
    """Return how hot each token is, `[batch, seq]` float32.

    It is 0 if the token is not hot, and NaN if its activations are not finite. With `statistic="windowed"` it is the
    token's score, of either sign.

    Args:
        activations (Tensor): `[batch, seq, N]`, from `heard`. Features of `gate_feature_ids` come after the clamped
            ones.
        active (Tensor): `[batch, seq, N]` bool, True where they are not 0.
        evidence (Tensor or None): `[N]` float32, evidence of each active feature. None: a hot token counts 1.
        counted (Tensor): `[batch, seq]` bool.
        config (SAEGuardrailConfig): The config.
    """
    activations = activations.detach()
    unsound = activations - activations  # 0, or NaN
    if evidence is None:
        return (active + unsound).amax(dim=-1).float()
    hits = torch.addcmul(unsound, active, evidence).sum(dim=-1)  # products with 0 and 1 are exact, fused or not
    return torch.add(hits, counted, alpha=config.statistic_kwargs.bias) if config.statistic == "windowed" else hits


def hot_tokens(active: Tensor, hits: Tensor, config: SAEGuardrailConfig) -> Tensor:
    """Return the tokens at which a clamped feature is active, which are edited: `[batch, seq]` bool.

    Args:
        active (Tensor): As in `hits_of`. A value that is not finite is active.
        hits (Tensor): From `hits_of`.
        config (SAEGuardrailConfig): The config.
    """
    return active[..., : config.num_features].any(dim=-1) if config.statistic == "windowed" else hits != 0


def usual_norm(hidden: Tensor, config: SAEGuardrailConfig) -> Tensor | None:
    """Return the tokens of `hidden [batch, seq, d_in]` that are not outliers, `[batch, seq]` bool.

    None if the config has no outlier norm.
    """
    if config.tokens.outlier_norm is None:
        return None
    return torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32) <= config.tokens.outlier_norm


def decide(
    hot: Tensor,
    counted: Tensor,
    config: SAEGuardrailConfig,
    previous: Tensor | None = None,
    boundary: int | None = None,
    ends: Tensor | None = None,
    kept: Tensor | None = None,
    by_count: Tensor | None = None,
    also: Sequence[Tensor] = (),
) -> Decision:
    """Judge the tokens of one forward pass.

    Args:
        hot (Tensor): `[batch, seq]`, bool or from `hits_of`.
        counted (Tensor): `[batch, seq]` bool.
        config (SAEGuardrailConfig): Statistic, its constants and the threshold.
        previous (Tensor, *optional*): `[batch, ...]`, the state after the row's last earlier token. None at a row's
            beginning.
        boundary (int, *optional*): Position from which tokens are judged one by one. None is the last position.
        ends (Tensor, *optional*): `[batch, seq]` bool, the tokens that end a message. None if the config names none.
        kept (Tensor, *optional*): `[batch, seq]` bool, the tokens that the mask shows. None: all.
        by_count (Tensor, *optional*): From `ConfigTables.by_count`, in the place of what it holds.
        also (Sequence[Tensor], *optional*): `[batch, seq]` float32 each, further columns of the state after all others.
    """
    seq = hot.shape[1]
    boundary = _boundary(config, seq, boundary)
    before = None if previous is None else State.of(previous[:, None])
    hits, tokens = _running_sums(hot, counted, before)
    value, lowest, peak = _value(hits, tokens, config, before, by_count)
    messages: Sequence[Tensor] = ()
    if ends is not None:
        earlier = None if previous is None else previous[:, STATE_SIZE:]
        value, after = by_message(value, hits, tokens, ends, share_of(config), earlier)
        messages = after.unbind(dim=-1)
    peak = value if peak is None else peak
    fired_at = _fired_at(value, config.tau, tokens, boundary if config.sticky else seq)
    if before is not None and config.sticky:
        fired_at = torch.where(before.fired_at > 0, before.fired_at, fired_at)
    fired = fired_at > 0
    if boundary > 0:
        fired = torch.cat([fired[:, boundary, None].expand(-1, boundary), fired[:, boundary:]], dim=1)
    kept = torch.ones_like(hits) if kept is None else kept
    state = [*State(hits, tokens, lowest, peak, fired_at, kept), *messages, *also]
    return Decision(fired, torch.stack(state, dim=-1))


def row_statistic(hot: Tensor, counted: Tensor, config: SAEGuardrailConfig, ends: Tensor | None = None) -> Tensor:
    """Return the value that decides whether a row, run in one pass, fires anywhere: `[batch]`.

    Thresholds are compared with it and calibrated on it. It is the statistic at the row's end under
    `gate_scope="sequence"`, and its largest value along the row under `"prefix"`.
    """
    hits, tokens = _running_sums(hot, counted, None)
    value = _value(hits, tokens, config, None)[0]
    if ends is not None:
        value, _ = by_message(value, hits, tokens, ends, share_of(config), None)
    if config.gate_scope == "prefix":
        return value.amax(dim=1)
    return value[:, -1]


def statistic_of(values: Sequence[float], config: SAEGuardrailConfig) -> float:
    """Return the statistic of one row after a token, from the numbers of its state.

    The numbers include those of messages.
    """
    state = State(*values[:STATE_SIZE])
    if config.statistic != "windowed":
        return float(state.peak)
    given = config.statistic_kwargs
    hits, tokens, peak, *messages = torch.tensor([state.hits, state.tokens, state.peak, *values[STATE_SIZE:]])
    found = torch.maximum(mean_part(hits, tokens, given), given.sum_weight * peak)
    if messages:
        begun_hits, begun_tokens, ended = messages
        share = message_part(hits - begun_hits, tokens - begun_tokens, given)
        found = torch.maximum(torch.maximum(found, share), ended)
    return float(found)


def _boundary(config: SAEGuardrailConfig, seq: int, boundary: int | None) -> int:
    if config.gate_scope == "prefix":
        return 0
    return seq - 1 if boundary is None else min(max(boundary, 0), seq - 1)


def _running_sums(hot: Tensor, counted: Tensor, before: State | None) -> tuple[Tensor, Tensor]:
    """`H` and `N`, both `[batch, seq]` float32."""
    if hot.shape[1] > 1:
        hot, counted = torch.stack([hot, counted]).cumsum(dim=-1, dtype=torch.float32).unbind()
    if before is None:
        return hot.float(), counted.float()
    return before.hits + hot, before.tokens + counted


def _value(
    hits: Tensor, tokens: Tensor, config: SAEGuardrailConfig, before: State | None, by_count: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The current value of the statistic, and the next `lowest` and `peak`, `[batch, seq]` each.

    `lowest` is zeros for ratio. `peak` is None if it is the statistic itself.
    """
    if config.statistic == "windowed":
        lowest, peak = (None, None) if before is None else (before.lowest, before.peak)
        return windowed_value(hits, tokens, config.statistic_kwargs, lowest, peak, by_count)
    floor = hits.new_zeros(hits.shape[0], 1) if before is None else before.lowest
    return hits / tokens.clamp(min=config.statistic_kwargs.min_tokens), floor.expand_as(hits), None


def _fired_at(value: Tensor, threshold: float, tokens: Tensor, boundary: int) -> Tensor:
    """Number of counted tokens when the row fired, as if the pass had ended at each position.

    It is 0 if the row had not fired.
    """
    # One operator for tokens.masked_fill(value <= threshold, 0), of the same bits; NaN is not <=.
    fired_at: Tensor = torch.ops.aten.threshold_backward(tokens, value, threshold)
    if boundary >= value.shape[1] - 1:
        return fired_at
    quiet = value <= threshold
    tail, alone = ~quiet[:, boundary:], fired_at[:, boundary:]
    first = tail & (tail.cumsum(dim=1) == 1)
    return torch.cat([fired_at[:, :boundary], (alone * first).cummax(dim=1).values], dim=1)
