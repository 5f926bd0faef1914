"""One decoded token per row on a CPU: torch computes the two products, Python the gate between them.

It computes the same as `SAEGuardrailLayer` does with torch's operators, with the same counts. An operator costs some
microseconds whatever its size, and a guardrail takes thirty of them. Python is faster for a few dozen numbers. Two
operators are left, or one if no row fires: then the edit is 0, and is not computed. Where rows
and features are many, the scores are computed by five operators more, since Python's loop is slower there.
"""

from array import array
from math import isfinite, nan, sqrt
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.values import as_float32
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import STATE_SIZE, State, usual_norm
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory
from sae_unlearn.guardrail.runtime.shown import check_on_host
from sae_unlearn.sae.equations import without_autocast


LARGEST = 1024
"""Number of activations in a batch above which Python's loop over them is not faster than operators."""


def host_step(
    hidden: Tensor,
    onto: Tensor,
    encoder: Any,
    decoder: Any,
    config: SAEGuardrailConfig,
    tables: ConfigTables,
    ids: Tensor | None,
    mask: Tensor | None,
    earlier: Tensor | None,
    history: DynamicGateHistory,
) -> Tensor:
    """Guard one token of every row on the CPU. Arguments and result are those of `interface.Step`."""
    batch = len(hidden)
    if earlier is not None:
        check_on_host(earlier, history)
    with without_autocast(hidden):
        pre = torch.nn.functional.linear(hidden[:, 0].to(torch.float32), encoder.weight, encoder.bias)
        threshold = encoder.threshold
        scores: list[float] | list[None] = [None] * batch
        if batch * config.num_encoded > LARGEST:
            scores = _scores(pre, threshold, tables.evidence(config, pre.device))
            pre, threshold = pre[:, : config.num_features], threshold[: config.num_features]
    usual = usual_norm(hidden, config)
    judge = _Judge(config, threshold, decoder.clamp)
    states = history.last_rows() or [State(*[0.0] * STATE_SIZE)] * batch
    kept = [True] * batch if mask is None else [shown != 0 for (shown,) in mask.tolist()]
    counted = _counted(kept, ids, config)
    norms = [True] * batch if usual is None else usual[:, 0].tolist()
    judged = [judge(*row) for row in zip(pre.tolist(), states, counted, norms, kept, scores, strict=True)]
    history.append_rows([state for state, _ in judged])
    if all(change is None for _, change in judged):
        return onto
    nothing = [0.0] * config.num_features
    changes = array("f", [number for _, change in judged for number in change or nothing])
    by_row = torch.frombuffer(changes, dtype=torch.float32).view(batch, -1)
    with without_autocast(hidden):
        edited = torch.addmm(onto[:, 0].to(torch.float32), by_row, decoder.weight)
    return edited[:, None].to(onto.dtype)


def _scores(pre: Tensor, threshold: Tensor, evidence: Tensor | None) -> list[float]:
    """Return each row's sum of the evidence of active features; NaN if a pre-activation is not finite.

    The sums are of quarters, and so exact in any order.
    """
    assert evidence is not None  # a gate that reads more than the guarded features weighs them
    return torch.addmv(pre.sum(dim=1) * 0, (pre > threshold).to(torch.float32), evidence).tolist()


def _counted(kept: list[bool], ids: Tensor | None, config: SAEGuardrailConfig) -> list[bool]:
    """True for each row whose token counts.

    It is the rule of `gate.counted` in Python, since an operator costs more than the whole list.
    """
    if ids is None:
        return kept
    special = set(config.tokens.special_ids or ())
    return [counts and token not in special for counts, (token,) in zip(kept, ids.tolist(), strict=True)]


class _Judge:
    """The gate of one row, and its edit. The equations are those of `gate.decision` and `layer`."""

    def __init__(self, config: SAEGuardrailConfig, threshold: Tensor, clamp: Tensor) -> None:
        self.threshold, self.clamp = threshold.tolist(), clamp
        self.evidence = config.feature_evidence
        self.min_tokens, self.tau = config.statistic_kwargs.min_tokens, as_float32(config.tau)
        self.sticky, self.all = config.sticky, config.clamp_mode == "all"
        self.windowed = config.statistic_kwargs if config.statistic == "windowed" else None
        self.guarded = config.num_features

    def __call__(
        self, pre: list[float], state: State, counts: bool, usual: bool, kept: bool, score: float | None
    ) -> tuple[State, list[float] | None]:
        """Return the row's next state, and the change of each activation or None if the row does not fire.

        Args:
            pre (list of float): The pre-activations of all features that the gate reads, or with `score` of the N
                guarded ones.
            state (State): State of the gate before this token.
            counts (bool): The token is content.
            usual (bool): The token is not an outlier.
            kept (bool): The mask shows the token.
            score (float or None): Sum of the evidence of the active features, if it is known.
        """
        activations = [x * (x > t) * usual for x, t in zip(pre, self.threshold, strict=True)] if counts else []
        active = [j for j, a in enumerate(activations) if a]  # NaN counts as active
        if not isfinite(sum(activations)) or (counts and score is not None and not isfinite(score)):
            hot = nan
        elif score is not None:
            hot = score if counts and usual else 0.0
        elif self.evidence is None:
            hot = float(bool(active))
        else:
            hot = sum([self.evidence[j] for j in active])
        if self.windowed is not None:
            hot += self.windowed.bias if counts else 0.0
        hits, tokens = state.hits + hot, state.tokens + counts
        if self.windowed is None:
            lowest, peak = 0.0, as_float32(hits / max(tokens, self.min_tokens))
            value, touched = peak, bool(hot)
        else:
            value, lowest, peak = self._value(hits, tokens, state)
            touched = bool(active) and active[0] < self.guarded
        fired_at = 0.0 if value <= self.tau else tokens  # NaN fires
        if self.sticky and state.fired_at > 0:
            fired_at = state.fired_at
        after = State(hits, tokens, lowest, peak, fired_at, float(kept))
        if not (fired_at > 0 and touched):
            return after, None
        change, clamp = [0.0] * self.guarded, self.clamp.tolist()
        for j in range(self.guarded) if self.all else active:
            if j < self.guarded:
                change[j] = clamp[j] - activations[j]
        return after, change

    def _value(self, hits: float, tokens: float, state: State) -> tuple[float, float, float]:
        """`S`, `L` and `P` of `gate.windowed`, with each step rounded to float32 as the operators round it."""
        given = self.windowed
        assert given is not None
        if not isfinite(hits):
            return nan, nan, nan
        y = hits - given.drift * tokens
        lowest = min(y, state.lowest)
        peak = max(y - lowest, state.peak)
        n, f = max(tokens, self.min_tokens), as_float32
        variance = f(f(f(f(given.row_variance) * n) + f(given.token_variance)) * n)
        mean = f(f(hits - f(f(given.other_mean) * tokens)) / f(sqrt(variance)))
        return max(mean, f(f(given.sum_weight) * peak)), lowest, peak
