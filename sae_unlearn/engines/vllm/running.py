"""One forward pass of a worker while it is computed: its rows, what was judged, and what was seen."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_unlearn.engines.vllm.guard import Guard
from sae_unlearn.engines.vllm.passes import Pass, Runner
from sae_unlearn.engines.vllm.records import Records
from sae_unlearn.engines.vllm.settings import Settings, chosen_names, seed_of
from sae_unlearn.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.gate.packed_step import Judged


class RunningPass:
    """A pass between the beginning and the end of `execute_model`.

    Args:
        runner (Runner): vLLM's model runner.
        group (int): The group of the cache whose slots the states follow.
        scheduled (SchedulerOutput): What is computed in the pass.
        settings (Settings): What the operator asks for.

    Attributes:
        judged: each guardrail with what it said, and the tokens it is on for (None: all).
        seen: tokens by guarded layer.
        drafts: drafted tokens by request.
    """

    def __init__(self, runner: Runner, group: int, scheduled: Any, settings: Settings) -> None:
        self._runner, self._group, self._settings = runner, group, settings
        self.judged: list[tuple[Guard, tuple[Judged, Tensor | None]]] = []
        self.seen: dict[int, int] = {}
        self.drafts = {request: len(ids) for request, ids in scheduled.scheduled_spec_decode_tokens.items()}
        resumed = set(scheduled.scheduled_cached_reqs.resumed_req_ids)
        again = scheduled.scheduled_cached_reqs
        self._cached = {new.req_id for new in scheduled.scheduled_new_reqs if new.num_computed_tokens}
        self._cached |= {
            request
            for request, computed in zip(again.req_ids, again.num_computed_tokens, strict=True)
            if request in resumed and computed
        }
        self._now: Pass | None = None

    @property
    def now(self) -> Pass:
        """The rows of the pass, read from the runner at the first guarded layer, when its inputs are prepared."""
        if self._now is None:
            names = self._names() if self._settings.per_request else {}
            seeds = {request: seed_of(chosen, self._settings) for request, chosen in names.items()}
            self._now = self._runner.read(self._group, bool(self._cached), seeds)
            self._seeds, self._chosen = seeds, names
        return self._now

    def _names(self) -> dict[str, tuple[str, ...]]:
        found = {}
        for request in self._runner.requests():
            try:
                found[request] = chosen_names(self._runner.params(request), self._settings)
            except GuardrailError:  # the front end refuses such
                found[request] = self._settings.names
        return found

    def judge(self, guard: Guard, stream: Tensor) -> tuple[Judged, Tensor | None]:
        """Judge the tokens of the pass, `stream [T, d_in]`, and check what was taken from the cache."""
        now = self.now
        if guard.config.gate_scope == "sequence":
            now.check_whole_prompts()
        judged, allowed = guard.judge(stream, now.step), None
        if any(guard.name not in chosen for chosen in self._chosen.values()):
            rows = torch.tensor([guard.name in self._chosen[request] for request in now.requests])
            allowed = rows.to(stream.device)[now.step.rows.of_token]
        self.judged.append((guard, (judged, allowed)))
        if self._cached:
            self._check_cached(guard)
        return judged, allowed

    def _check_cached(self, guard: Guard) -> None:
        """Raise unless cached tokens belong to their requests, and this guardrail has seen them.

        Raises:
            GuardrailNotReady: Naming the request. vLLM stops.
        """
        table, slots = guard.table, self.now.step.slots
        if table is None or table.stamps is None or slots is None:
            raise GuardrailNotReady("A request found tokens in the cache: expected none without prefix caching.")
        for row, request in enumerate(self.now.requests):
            if request not in self._cached:
                continue
            count = int(self.now.computed[row])
            ids = torch.tensor(self._runner.ids(request)[:count])
            expected = table.stamp_of(ids, self._seeds.get(request, 0))
            if len(ids) != count or int(table.stamps[slots.before[row]]) != expected:
                raise GuardrailNotReady(
                    f"Request {request} found {count} tokens in the cache which guardrail {guard.name} has not seen. "
                    "The engine stops."
                )

    def check_complete(self, tokens: int, layers: Iterable[int]) -> None:
        """Raise unless every guarded layer saw every token: compiled code may be of another model.

        Raises:
            GuardrailNotReady: Naming the layer. vLLM stops.
        """
        for index in layers:
            if self.seen.get(index) != tokens:
                raise GuardrailNotReady(
                    f"{tokens} tokens were computed, and the guardrail at layer {index} saw {self.seen.get(index, 0)}. "
                    "The engine stops. Remove vLLM's compile cache, or pass --enforce-eager."
                )

    def note(self, records: Records) -> None:
        """Note the state of each request after its last token that is certain: drafts may be rejected."""
        now = self.now
        for guard, (judged, _) in self.judged:
            for row, request in enumerate(now.requests):
                token = int(now.starts[row] + now.lengths[row]) - 1 - self.drafts.get(request, 0)
                enabled = guard.name in self._chosen.get(request, self._settings.names)
                records.note(request, guard.name, guard.config, judged.decision.state, token, enabled)

    def kept(self, request: str, ids: list[int], longest: int) -> int:
        """Return how many of the tokens that a pass sampled, accepted drafts and one more, the answer keeps.

        The scheduler cuts them at a token that ends the answer, and at the largest number of tokens (vLLM 0.32,
        `v1/core/sched/utils.check_stop`), after the worker has returned them.

        Args:
            request (str): A request of the pass.
            ids (list[int]): Its sampled tokens.
            longest (int): Largest number of tokens of a request, `max_model_len`.
        """
        now, params = self.now, self._runner.params(request)
        row = now.requests.index(request)
        before = int(now.computed[row] + now.lengths[row]) - self.drafts.get(request, 0)
        room = min(longest - before, (params.max_tokens or longest) - (before - int(now.prompts[row])))
        ends = {params.eos_token_id, *(params.stop_token_ids or ())}
        for count, token in enumerate(ids, 1):
            if token in ends or count >= room:
                return count
        return len(ids)
