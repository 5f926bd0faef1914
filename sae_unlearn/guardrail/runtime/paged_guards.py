"""The guardrails of a model in transformers' continuous batching: tables of states, checks, records.

There the rows of a forward pass are requests, or pieces of their prompts, one after the other, and keys and values lie
in a paged cache. The gate's state of each token lies at the token's slot, see `slot_table`. So prompts in pieces,
shared prefixes, forks and rows that are computed again need no bookkeeping.

The host compares what transformers says of its requests with what each guardrail has judged. A request with tokens in
the cache that a guardrail has not seen stops the generation: with the attention of a CPU, NaN in one row would reach
the others of the pass.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.paged_cache import PagedIndex, PagedLayout
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.packed import Rows, check_packable, state_size
from sae_unlearn.guardrail.gate.packed_step import Judged, PackedStep, judge
from sae_unlearn.guardrail.gate.slot_table import BEGINNING, CacheSlots, SlotTable
from sae_unlearn.guardrail.runtime.gate_history import GateHistory, Owner, Readers
from sae_unlearn.guardrail.runtime.recording import Recorder
from sae_unlearn.guardrail.weights import LayerGuardrail


_RUNNING = threading.local()


class Request(NamedTuple):
    """A row of a pass.

    Attributes:
        id (str): Of the request.
        computed (int): Its tokens before the pass.
        length (int): Its tokens in the pass.
        prompt (int): Tokens of its prompt.
    """

    id: str
    computed: int
    length: int
    prompt: int


class RequestHistory(GateHistory):
    """The last state of a request, for those who record firings.

    Attributes:
        request (str): Its id.
        state (Tensor): `[1, S]`.
    """

    def __init__(self, request: str) -> None:
        self.request, self.readers = request, Readers()
        self.state: Tensor | None = None

    def last(self) -> Tensor | None:
        return self.state


@dataclass
class _Kept:
    """State of one guardrail for a cache.

    Attributes:
        table: The states by slot.
        step: The last step that it judged.
        seen: By request, the tokens that it judged without a gap.
        histories: By request, while firings are recorded.
    """

    table: SlotTable
    step: int
    seen: dict[str, int] = field(default_factory=dict)
    histories: dict[str, RequestHistory] = field(default_factory=dict)


class PagedGuards:
    """The guardrails' tables for one paged cache.

    Args:
        cache (PagedAttentionCache): The cache.

    Attributes:
        layout (PagedLayout): Of the cache.
        requests (list[Request]): The rows of the present step.
        passed (bool): The model's hooks saw the present step.
    """

    def __init__(self, cache: Any) -> None:
        self.layout = PagedLayout.of(cache)
        self.requests: list[Request] = []
        self.passed = False
        self.shares_prefixes = bool(getattr(cache, "use_prefix_sharing", False))
        self._kept: dict[Owner, _Kept] = {}
        self._step = 0
        copy = getattr(self.layout.copier, self.layout.copies)
        setattr(self.layout.copier, self.layout.copies, functools.partial(_copied, copy, self._kept, self.layout.page))

    def begin(self, requests: list[Request]) -> None:
        """Begin a step, whose rows are `requests`."""
        self.requests, self._step, self.passed = requests, self._step + 1, False

    def end(self, running: Callable[[str], bool]) -> None:
        """Forget the requests that are no longer running, and hand their records out."""
        for kept in self._kept.values():
            for request in [request for request in kept.seen if not running(request)]:
                del kept.seen[request]
            for request in [request for request in kept.histories if not running(request)]:
                kept.histories.pop(request).end()

    def pass_of(self, given: dict[str, Any]) -> "PagedPass":
        """Return the pass that the model is called with in this step.

        Raises:
            GuardrailNotReady: If it is not that of the step's requests.
        """
        ids, places, requests, self.passed = given["input_ids"], given.get("position_ids"), self.requests, True
        if ids is None or places is None or places.shape != ids.shape:
            shapes = [getattr(each, "shape", None) for each in (places, ids)]
            raise GuardrailUnsupported(
                f"position_ids={shapes[0]}, input_ids={shapes[1]}: expected one position of each token in continuous "
                "batching. Use generate() with this model."
            )
        if ids.shape != (1, sum(request.length for request in requests)):
            raise GuardrailNotReady(
                f"input_ids={tuple(ids.shape)}: expected the {sum(r.length for r in requests)} tokens of the "
                f"{len(requests)} requests of this step. Pass no padding: use_cuda_graph=False."
            )
        lengths, prompts = [r.length for r in requests], [max(r.prompt - 1 - r.computed, 0) for r in requests]
        rows = torch.tensor([lengths, [r.computed for r in requests], prompts])
        lengths_of, computed, prompt_left = rows.to(ids.device).unbind()
        starts = lengths_of.cumsum(0) - lengths_of
        of_token = torch.arange(len(requests)).repeat_interleave(rows[0]).to(ids.device)
        positions = places[0].long()
        index = PagedIndex(self.layout, given, starts, computed)
        slots = CacheSlots(
            of_token=index.at(of_token, positions, BEGINNING),
            before=index.at(torch.arange(len(requests), device=ids.device), computed - 1, BEGINNING),
            computed=computed,
        )
        step = PackedStep(
            rows=Rows(of_token, starts, lengths_of),
            ids=ids[0].long(),
            positions=positions,
            prompt_end=starts + prompt_left,
            slots=slots,
            one_each=max(lengths) == 1,
        )
        return PagedPass(self, step, index)

    def kept(self, owner: Owner, config: SAEGuardrailConfig, device: torch.device) -> _Kept:
        """Return what a guardrail knows. Nothing, if it did not judge the step before."""
        kept = self._kept.get(owner)
        if kept is None:
            with torch.inference_mode(False):
                table = SlotTable(self.layout.slots, state_size(config), ids=config.action == "refuse", device=device)
            kept = self._kept[owner] = _Kept(table, self._step - 1)
        if kept.table.ids is None and config.action == "refuse":  # its action was changed
            kept.table.ids = torch.full((self.layout.slots + 2,), -1, device=device)
        if kept.step < self._step - 1:  # its slots may hold tokens that it has not seen
            kept.table.clear()
            kept.seen.clear()
        return kept

    def done(self, kept: _Kept) -> None:
        """Note that a guardrail judged the present step."""
        kept.step = self._step
        for request in self.requests:
            kept.seen[request.id] = request.computed + request.length


def _copied(copy: Callable[..., None], kept: dict[Owner, _Kept], page: int, sources: Any, targets: Any) -> None:
    """Copy blocks of the cache, and the states of their tokens."""
    copy(sources, targets)
    for each in kept.values():
        each.table.copy_blocks(zip(sources, targets, strict=True), page)


@contextmanager
def stepping(guards: PagedGuards) -> Iterator[PagedGuards]:
    """Note the tables for the hooks of this thread while a step runs."""
    outer, _RUNNING.guards = getattr(_RUNNING, "guards", None), guards
    try:
        yield guards
    finally:
        _RUNNING.guards = outer


def running_guards() -> PagedGuards:
    """Return the guardrails' tables of the step that this thread runs.

    Raises:
        GuardrailUnsupported: If a paged cache is used outside of a step, as to warm up CUDA graphs.
    """
    guards: PagedGuards | None = getattr(_RUNNING, "guards", None)
    if guards is None:
        raise GuardrailUnsupported(
            "cache: a paged cache outside of a step of `generate_batch`, as in a warm-up. Set use_cuda_graph=False, "
            "use_async_batching=False and no compile config."
        )
    return guards


class PagedPass:
    """A forward pass of continuous batching, as a `packed_pass.PackedPass`."""

    def __init__(self, guards: PagedGuards, step: PackedStep, index: PagedIndex) -> None:
        self._guards, self.step, self._index = guards, step, index
        self._kept: dict[Owner, _Kept] = {}

    def check_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Nothing to check: the paged cache keeps requests apart."""

    def judge(self, owner: Owner, hidden: Tensor, guard: LayerGuardrail, tables: ConfigTables) -> Judged:
        """Judge the tokens of the pass, `hidden [T, d_in]`.

        Raises:
            GuardrailError: If packed rows cannot be judged, see `packed.check_packable`.
            GuardrailUnsupported: If a prompt is not whole, which `gate_scope="sequence"` needs.
            GuardrailNotReady: If a request has tokens that this guardrail has not seen.
        """
        config = guard.config
        check_packable(config)
        if config.gate_scope == "sequence":
            self._check_whole_prompts()
        kept = self._kept[owner] = self._guards.kept(owner, config, hidden.device)
        judged = judge(hidden, self.step, config, guard.encoder, guard.decoder, tables, kept.table)
        self._check_seen(owner, kept, judged)
        self._guards.done(kept)
        return judged

    def last_ids(self, owner: Owner, count: int) -> Tensor:
        last, ids = self.step.rows.last, self._kept[owner].table.ids
        assert ids is not None
        back = self.step.positions[last][:, None] + last.new_tensor(range(1 - count, 1))
        row = torch.arange(len(last), device=last.device)[:, None].expand_as(back)
        return ids[self._index.at(row, back, BEGINNING)].masked_fill(back < 0, -1)

    def record(self, owner: Owner, config: SAEGuardrailConfig, judged: Judged, recorders: list[Recorder]) -> None:
        histories, states = self._kept[owner].histories, judged.decision.state[self.step.rows.last]
        for request, state in zip(self._guards.requests, states.split(1), strict=True):
            history = histories.setdefault(request.id, RequestHistory(request.id))
            history.state = state
            for recorder in recorders:
                recorder.note(owner[1], config, history, request=request.id)

    def _check_whole_prompts(self) -> None:
        cut = [r.id for r in self._guards.requests if r.computed < r.prompt and (r.computed or r.length < r.prompt)]
        if cut or self._guards.shares_prefixes:
            raise GuardrailUnsupported(
                f'gate_scope="sequence": expected whole prompts, got a piece of {cut or "some"}. Set '
                "allow_block_sharing=False, num_return_sequences=1 and a larger max_batch_tokens, or fit with "
                'gate_scope="prefix".'
            )

    def _check_seen(self, owner: Owner, kept: _Kept, judged: Judged) -> None:
        """Raise if a row has tokens in the cache that this guardrail has not judged.

        It waits for the device only if the host does not know, as at a shared prefix or a fork.
        """
        unknown = [r.id for r in self._guards.requests if r.computed and kept.seen.get(r.id) != r.computed]
        if unknown and judged.lost is not None and bool(judged.lost.any()):
            raise GuardrailNotReady(
                f"Among the requests {unknown[:5]} some have tokens in the cache that guardrail {owner[1]!r} has not "
                "seen. Enable it before requests begin, and use a new manager."
            )
