"""`action="refuse"`: a row that fired is answered with the owner's message.

With the message `m_1 ... m_n` (token ids, the last one ends the sequence), and `k` the length of the longest beginning
of `m` with which the row's tokens end, the next token of a row that fired is

    m_{k+1}    for k < n        m_n    for k = n

and every other token gets a logit that is `LOW` below it. The row itself thus says how much of the message has been
given, so beams, rejected drafts, a batch's other rows, several turns and a request without a cache need no state but
the last `n` tokens, which are kept in the request's cache beside the gate's history.

The logits are overwritten at the positions that `generate` asks for, and at the last one of a plain forward pass. All
other positions of a row that fired, and whatever is read before the head, are clamped as with `action="clamp"`: no
forward pass gives the text unguarded.

A prompt that itself ends with a beginning of the message is answered with the rest of it. Should something forbid the
end of the sequence (`min_new_tokens`), the message begins again.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase

from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate import Decision, State
from sae_unlearn.guardrail.runtime.cache_state import history_of, tokens_of
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.gate_history import GateHistory, StaticGateHistory


LOW = 2e4
"""Logit by which all other tokens lie below the one that has to come; half of it for the one if that is forbidden.

No dtype's edge: what comes after the logits divides them by a temperature, weighs them against a second pass, adds them
up along a beam, and must still tell these three values apart. `exp(-LOW / 2)` is 0 in float32 up to a temperature of
90, and float16 holds both."""

_UNKNOWN = -1  # a token of which only the embedding is known, and padding


def message_ids(message: str, tokenizer: PreTrainedTokenizerBase | None, generation_config: Any = None) -> list[int]:
    """The tokens of a refusal: the message, then the end of the sequence.

    Raises:
        GuardrailError: there is no tokenizer or message, or nothing that ends a sequence.
    """
    if tokenizer is None:
        raise GuardrailError("The refusal is text, which needs a tokenizer; pass one, or give `refusal_ids`.")
    ids = [] if not message.strip() else tokenizer(message, add_special_tokens=False)["input_ids"]
    if not ids:
        raise GuardrailError(f"refusal={message!r} has no tokens; give the message that is to be answered.")
    end = getattr(generation_config, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise GuardrailError("Neither tokenizer nor model has an eos_token_id, which must end a refusal; set one.")
    return [*ids, int(end[0] if isinstance(end, (list, tuple)) else end)]


def check_message(config: SAEGuardrailConfig, vocabulary: int) -> None:
    """Raise if the message cannot be said by a model with so many tokens.

    Raises:
        GuardrailNotReady: naming the token.
    """
    highest = max(config.refusal_ids or [0])
    if highest >= vocabulary:
        raise GuardrailNotReady(
            f"The refusal holds token {highest}, but the model's vocabulary ends at {vocabulary - 1}; set it again "
            "with this model's tokenizer."
        )


def note_refusal(
    name: str,
    config: SAEGuardrailConfig,
    message: Tensor,
    decision: Decision,
    kept: Tensor,
    inputs: ForwardInputs,
    cache: Cache | None,
    known: tuple[int, int],
) -> None:
    """Note what the next token of each row has to be, for `refuse` to write it into the logits (see `hooks`).

    Args:
        message: of the config, see `IdTables.message`.
        decision: the gate's, of this pass.
        kept: `[batch, seq]` bool.
        known: number of layers, largest number of positions.
    """
    if inputs.input_ids is None:
        ids = torch.full(kept.shape, _UNKNOWN, device=kept.device)
    else:
        ids = inputs.input_ids.to(kept.device).masked_fill(~kept, _UNKNOWN)
    n, seq = len(message) - 1, ids.shape[1]
    before = None
    if cache is not None:
        history = history_of(cache, (config.layer, tokens_of(name)), inputs.past, inputs.recurrent, *known, seq)
        before = _last(history, n)
        history.append(ids[..., None].float())  # exact up to 2**24
    if before is None:
        before = ids.new_full((ids.shape[0], n), _UNKNOWN)
    told = _told(torch.cat([before.to(ids.dtype), ids], dim=1), message[:n])
    fired = State.of(decision.state).fired_at > 0
    # Without a cache a row is judged afresh with what was told already, which may have let it go.
    start = torch.arange(seq, device=ids.device) - told
    fired = fired | ((told > 0) & (start >= 0) & fired.gather(1, start.clamp(min=0)))
    choices = torch.stack([message[told], message[:1].expand_as(told)], dim=-1)
    choices = choices.masked_fill(~fired[..., None], _UNKNOWN)
    if inputs.refused:  # of a guardrail in an earlier layer: the first to refuse has the word
        earlier = inputs.refused.pop().to(choices.device)
        choices = torch.where(earlier >= 0, earlier, choices)
    inputs.refused.append(choices)


def refuse(output: Any, choices: Tensor, wanted: int | None) -> Any:
    """Write what was noted into the logits of a call's output.

    Args:
        choices: `[batch, seq, 2]`, the token that has to come after each, and the one if that is forbidden.
        wanted: number of last positions whose logits were asked for; None or 0 if all were.
    """
    logits = getattr(output, "logits", None)
    batch, seq = choices.shape[:2]
    if not isinstance(logits, Tensor) or logits.shape[:-1] not in ((batch, seq), (batch, wanted)):
        return output  # a tuple, no head, or a head that was shown picked positions: clamped, and not refused
    count = min(wanted or 1, logits.shape[1], choices.shape[1])
    choices = choices[:, -count:].to(logits.device)
    told = torch.full_like(logits[:, -count:], -LOW)
    told = told.scatter(-1, choices[..., 1:].clamp(min=0), -LOW / 2).scatter(-1, choices[..., :1].clamp(min=0), 0.0)
    tail = torch.where(choices[..., :1] >= 0, told, logits[:, -count:])
    output.logits = tail if count == logits.shape[1] else torch.cat([logits[:, :-count], tail], dim=1)
    return output


def _told(ids: Tensor, message: Tensor) -> Tensor:
    """`[batch, seq]`: the length of the longest beginning of `message [n]` with which the tokens up to each position
    end, for `ids [batch, n + seq]`, the first n of which are of earlier passes."""
    n = len(message)
    windows = ids.unfold(1, n, 1)[:, 1:]  # [batch, seq, n]: each position's last n tokens
    told = torch.zeros_like(windows[..., 0])
    for k in range(1, n + 1):
        told = torch.where((windows[..., n - k :] == message[:k]).all(dim=-1), k, told)
    return told


def _last(history: GateHistory, n: int) -> Tensor | None:
    """The last `n` tokens of the earlier passes `[batch, n]`, filled up in front; None if there are none."""
    if history.get_seq_length() == 0 if not isinstance(history, StaticGateHistory) else not history.is_initialized:
        return None
    keys = history.keys[:, 0, :, 0]
    if isinstance(history, StaticGateHistory):
        index = history.cumulative_length + torch.arange(-n, 0, device=keys.device)
        found = keys.index_select(1, index.clamp(min=0))
        return found.masked_fill(index < 0, _UNKNOWN).long()
    found = keys[:, -n:].long()
    return torch.nn.functional.pad(found, (n - found.shape[1], 0), value=_UNKNOWN)
