"""`action="refuse"`: a row that fired is answered with the owner's message.

With the message `m_1 ... m_n` (token ids, the last one ends the sequence), and `k` the length of the longest prefix of
`m` with which the row's tokens end, the next token of a row that fired is

    m_{k+1}    for k < n        m_n    for k = n

and every other token gets a logit that is `LOW` below it. The row itself shows how much of the message it has, so
beams, rejected drafts, a batch's other rows, several turns and a request without a cache need no state except the last
`n` tokens, which are in the request's cache next to the gate's history.

The logits are overwritten at the positions that `generate` requests, and at the last one of a plain forward pass. All
other positions of a row that fired, and everything before the head, are clamped as with `action="clamp"`: no forward
pass gives the text unguarded. A pass that no logits follow, of the backbone alone, raises (see `hooks`). Where this
package measures probabilities, no message is written (see `backbone.logits`).

A prompt that itself ends with a prefix of the message is answered with the rest of it. If the end of the sequence is
forbidden (`min_new_tokens`), the message begins again.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase

from sae_unlearn.backbone.logits import are_measured
from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.decision import Decision, State
from sae_unlearn.guardrail.runtime.cache_state import history_of, tokens_of
from sae_unlearn.guardrail.runtime.call_context import ForwardInputs
from sae_unlearn.guardrail.runtime.gate_history import GateHistory, StaticGateHistory


LOW = 2e4
"""Difference of the logits of all other tokens to the next one; half of it for the alternative.

The alternative counts if the next token is forbidden. `LOW` is not the limit of a dtype: later steps divide the logits
by a temperature, combine them with a second pass and add them up along a beam, and must still separate these three
values. `exp(-LOW / 2)` is 0 in float32 up to a temperature of 90, and float16 can hold both.
"""

_UNKNOWN = -1  # a token with unknown id, and padding


def message_ids(message: str, tokenizer: PreTrainedTokenizerBase | None, generation_config: Any = None) -> list[int]:
    """Return the tokens of a refusal: the message, then the end of the sequence.

    Args:
        message (str): The message.
        tokenizer (PreTrainedTokenizerBase or None): The tokenizer.
        generation_config (*optional*): Of the model, with the ids that end a sequence.

    Raises:
        GuardrailError: If the tokenizer, the message or the end of the sequence is missing.
    """
    if tokenizer is None:
        raise GuardrailError(
            "tokenizer=None: expected a tokenizer, since the refusal is text. Pass one, or `refusal_ids`."
        )
    ids = [] if not message.strip() else tokenizer(message, add_special_tokens=False)["input_ids"]
    if not ids:
        raise GuardrailError(f"refusal={message!r}: expected a message with tokens.")
    end = getattr(generation_config, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise GuardrailError(
            "eos_token_id=None: expected one in the tokenizer or the model, which ends a refusal. Set one."
        )
    return [*ids, int(end[0] if isinstance(end, (list, tuple)) else end)]


def check_message(config: SAEGuardrailConfig, vocabulary: int) -> None:
    """Raise if the message has tokens beyond the model's vocabulary.

    Raises:
        GuardrailNotReady: If it has. The message names the token.
    """
    highest = max(config.refusal_ids or [0])
    if highest >= vocabulary:
        raise GuardrailNotReady(
            f"refusal_ids: expected ids up to {vocabulary - 1}, the end of the vocabulary, got {highest}. "
            "Set the refusal "
            "again with this model's tokenizer."
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
    """Note the next token of each row, for `refuse` to write it into the logits (see `hooks`).

    Args:
        name (str): Name of the guardrail.
        config (SAEGuardrailConfig): Its config.
        message (Tensor): Of the config, see `ConfigTables.message`.
        decision (Decision): The gate's, of this pass.
        kept (Tensor): `[batch, seq]` bool.
        inputs (ForwardInputs): Inputs of the call.
        cache (Cache or None): The cache of the call.
        known (tuple): Number of layers, largest number of positions.
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
    windows = torch.cat([before.to(ids.dtype), ids], dim=1).unfold(1, n, 1)[:, 1:]  # each position's last n tokens
    count = told(windows, message[:n])
    fired = State.of(decision.state).fired_at > 0
    # Without a cache a row is judged again with the message so far, after which it may no longer count as fired.
    start = torch.arange(seq, device=ids.device) - count
    fired = fired | ((count > 0) & (start >= 0) & fired.gather(1, start.clamp(min=0)))
    choices = torch.stack([message[count], message[:1].expand_as(count)], dim=-1)
    note_choices(choices.masked_fill(~fired[..., None], _UNKNOWN), inputs)


def note_choices(choices: Tensor, inputs: ForwardInputs) -> None:
    """Note the next tokens of refused rows for `refuse`: `[batch, seq, 2]`, -1 for all others."""
    if inputs.refused:  # by a guardrail in an earlier layer: the first refusal counts
        earlier = inputs.refused.pop().to(choices.device)
        choices = torch.where(earlier >= 0, earlier, choices)
    inputs.refused.append(choices)


def refuse(output: Any, choices: Tensor, keep: Any, packed: bool = False) -> Any:
    """Write the noted tokens into the logits of a call's output.

    Args:
        output (Any): Output of the model: with `logits`, or a tuple whose first tensor `[batch, tokens, vocabulary]`
            they are.
        choices (Tensor): `[batch, seq, 2]`, the token that must come after each, and the alternative if it is
            forbidden.
        keep (Any): `logits_to_keep` of the call. A number of last positions, which are all written; or None, 0 or an
            index of positions: then the last token's is written.
        packed (bool, *optional*, defaults to False): The row has several texts, and each is written where `choices`
            says.

    Raises:
        GuardrailNotReady: If the output has no logits of these positions.
    """
    logits = _logits_in(output)
    batch, seq = choices.shape[:2]
    places = None if keep is None or isinstance(keep, int) else _places(keep, seq)
    asked = [seq if places is None else len(places)]
    if isinstance(keep, int) and keep != 0:
        asked.append(min(keep, seq) if keep > 0 else seq + keep)
    fits = logits is not None and logits.ndim == 3 and logits.shape[0] == batch and logits.shape[1] in asked
    # compiled code asks only if it has to, since each state of a thread costs a compilation
    if not (fits and torch.compiler.is_compiling()) and are_measured():
        return output
    if logits is None or not fits:
        found = type(output).__name__ if logits is None else f"logits {list(logits.shape)}"
        raise GuardrailNotReady(
            f'action="refuse": expected logits [{batch}, {asked[-1]}, vocabulary] to hold the message, got {found}. '
            "Call a model that returns them, or use another action."
        )
    if places is None:
        count = min(keep if isinstance(keep, int) and keep > 0 else seq if packed else 1, logits.shape[1], seq)
        choices = choices[:, seq - count :].to(logits.device)
    else:
        places = places.to(logits.device)
        count = len(places)
        hidden = (places != seq - 1) & (not packed)
        choices = choices.to(logits.device)[:, places].masked_fill(hidden[:, None], _UNKNOWN)
    start = logits.shape[1] - count
    told = torch.full_like(logits[:, start:], -LOW)
    told = told.scatter(-1, choices[..., 1:].clamp(min=0), -LOW / 2).scatter(-1, choices[..., :1].clamp(min=0), 0.0)
    tail = torch.where(choices[..., :1] >= 0, told, logits[:, start:])
    written = tail if start == 0 else torch.cat([logits[:, :start], tail], dim=1)
    if isinstance(output, tuple):
        return tuple(written if part is logits else part for part in output)
    output.logits = written
    return output


def _logits_in(output: Any) -> Tensor | None:
    """Return the logits of a model's output, or None.

    Before them a tuple can only have losses, which are scalars.
    """
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Tensor) and part.ndim == 3), None)
    found = getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else None


def _places(keep: Any, seq: int) -> Tensor:
    """Return the positions `[n]` of `seq` ones that an index selects, such as a tensor or list."""
    device = keep.device if isinstance(keep, Tensor) else None
    return torch.arange(seq, device=device)[keep].reshape(-1)


def told(windows: Tensor, message: Tensor) -> Tensor:
    """Return the length of the longest prefix of the message with which each window ends, `[...]`.

    Args:
        windows (Tensor): `[..., n]`, each position's last n tokens.
        message (Tensor): `[n]`.
    """
    n = len(message)
    count = torch.zeros_like(windows[..., 0])
    for k in range(1, n + 1):
        count = torch.where((windows[..., n - k :] == message[:k]).all(dim=-1), k, count)
    return count


def _last(history: GateHistory, n: int) -> Tensor | None:
    """The last `n` tokens of the earlier passes `[batch, n]`, filled up in front, or None without any."""
    if history.get_seq_length() == 0 if not isinstance(history, StaticGateHistory) else not history.is_initialized:
        return None
    keys = history.keys[:, 0, :, 0]
    if isinstance(history, StaticGateHistory):
        index = history.cumulative_length + torch.arange(-n, 0, device=keys.device)
        found = keys.index_select(1, index.clamp(min=0))
        return found.masked_fill(index < 0, _UNKNOWN).long()
    found = keys[:, -n:].long()
    return torch.nn.functional.pad(found, (n - found.shape[1], 0), value=_UNKNOWN)
