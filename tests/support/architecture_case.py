"""A guarded model of one architecture, its base, and prompts that fire early, late and never."""

import inspect
from functools import cache

import torch
from peft import get_peft_model
from zoo import base_model, padded, plant, planted_config, token_ids

from sae_unlearn import record_firings


SCOPES = ("sequence", "prefix")
NEW = 12
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


class Case:
    """A guarded model, its base, and four prompts: one fires in the prompt, one later, one never, one as it likes."""

    def __init__(self, architecture: str, scope: str, sticky: bool, statistic: str) -> None:
        # frozen as under a guardrail: for a weight that requires gradients torch.matmul folds the batch into the rows
        # (torch 2.13, `should_fold`), which rounds otherwise where MKL has no AVX-512: seen with mamba's projections
        self.base = base_model(architecture).requires_grad_(False)
        self.layer = 0 if architecture == "mamba" else 1  # index of the guarded layer's entry in hidden_states, less 1
        # a gate that is not sticky tells more by its decisions, for the probes that a naive implementation must fail
        gate = {"threshold": 0.55, "min_tokens": 8} if sticky else {"threshold": 0.48, "min_tokens": 1}
        self.config = planted_config(gate_scope=scope, sticky=sticky, statistic=statistic, **gate)
        self.model = get_peft_model(base_model(architecture), self.config)
        plant(self.model)
        pool = [token_ids(1, (12, 7, 9, 5)[i % 4], seed=i)[0] for i in range(24)]
        if sticky:
            firings = self.firings(lambda: self.model.generate(**padded(pool), **GREEDY))
            at = [(f.at_token, len(row)) for f, row in zip(firings, pool, strict=True)]
            chosen = (
                next(i for i, (t, n) in enumerate(at) if t is not None and t <= n),
                next(i for i, (t, n) in enumerate(at) if t is not None and t > n),
                next(i for i, (t, n) in enumerate(at) if t is None),
            )
            pool = [pool[i] for i in (*chosen, next(i for i in range(24) if i not in chosen))]
        self.pool, self.rows = pool, pool[:4]
        self.assistant = base_model(architecture)  # near enough to the base for some of its drafts to be accepted
        with torch.no_grad():
            weight = self.assistant.get_input_embeddings().weight
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        self.batch = padded(self.rows)
        self.width = self.batch["input_ids"].shape[1]

    def firings(self, call):
        with record_firings(self.model) as firings, torch.no_grad():
            call()
        return list(firings)

    def alone(self, row, **kwargs):
        """Tokens generated for one row without padding."""
        ids = row[None]
        return self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **(GREEDY | kwargs))[0]

    def each_alone(self, rows=None, **kwargs):
        return [self.alone(row, **kwargs) for row in rows or self.rows]

    def logits(self, ids, mask=None, model=None):
        """Logits of one plain forward pass in which every token has the position that it has in its row."""
        mask = torch.ones_like(ids) if mask is None else mask
        kwargs = {}
        if "position_ids" in inspect.signature(self.base.forward).parameters:
            kwargs["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        with torch.no_grad():
            return (model or self.model)(input_ids=ids, attention_mask=mask, **kwargs).logits


@cache
def case(architecture: str, scope: str, sticky: bool = True, statistic: str = "ratio") -> Case:
    return Case(architecture, scope, sticky, statistic)


def equal(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def same_records(firings, it: Case, ids, mask) -> bool:
    """Whether rows were recorded as one plain forward pass over their tokens records them.

    What is hot at the guarded layer does not depend on that layer's edits, so this holds for both scopes.
    """
    expected = it.firings(lambda: it.logits(ids, mask))
    fields = ("row", "evidence", "tokens", "statistic")
    return [[getattr(f, k) for k in fields] for f in firings] == [[getattr(f, k) for k in fields] for f in expected]


def beam_gap(it: Case, rows) -> float:
    """Largest difference between the beams' scores and the log-probabilities of the same tokens, teacher-forced."""
    batch = padded([row[:n] for row, n in zip(rows, (5, 3, 4, 5), strict=True)])
    out = it.model.generate(
        **batch,
        **GREEDY,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    start = batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"].repeat_interleave(4, 0), torch.ones(16, NEW, dtype=torch.long)], dim=1)
    logits = it.logits(out.sequences, mask)[:, start - 1 : -1]
    scores = logits.log_softmax(-1).gather(2, out.sequences[:, start:, None])[..., 0].sum(dim=1)
    return float((scores - out.sequences_scores).abs().max())
