"""The guardrails of a vLLM worker: attached after the model is loaded, with tables after the cache."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sae_unlearn.engines.counts import Counts
from sae_unlearn.engines.vllm import ops
from sae_unlearn.engines.vllm.base import difference
from sae_unlearn.engines.vllm.guard import Guard, apply_edits
from sae_unlearn.engines.vllm.layers import find_layers, guard_layer, is_elsewhere
from sae_unlearn.engines.vllm.limits import check_engine, check_guardrail
from sae_unlearn.engines.vllm.passes import Runner
from sae_unlearn.engines.vllm.records import Records
from sae_unlearn.engines.vllm.refusal import refuse
from sae_unlearn.engines.vllm.running import RunningPass
from sae_unlearn.engines.vllm.settings import Settings
from sae_unlearn.engines.vllm.step_v1 import FirstRunner
from sae_unlearn.engines.vllm.step_v2 import SecondRunner
from sae_unlearn.errors import GuardrailError, GuardrailNotReady, GuardrailUnsupported


logger = logging.getLogger(__name__)


class WorkerGuards:
    """The guardrails of a worker.

    Args:
        worker (WorkerBase): vLLM's worker. Its methods `load_model`, `initialize_from_config`, `execute_model` and
            `sample_tokens` are wrapped.
        settings (Settings): What the operator asks for.

    Attributes:
        by_layer: the guardrails of this worker's layers.
        counts: what they did since the start.
        records: what they said of each request.
        running: the pass that is being computed; None between passes.

    Raises:
        GuardrailUnsupported: If the engine has a setting that a guardrail cannot work with.
    """

    def __init__(self, worker: Any, settings: Settings) -> None:
        check_engine(worker.vllm_config, settings.untested)
        self.worker, self.settings, self.vllm_config = worker, settings, worker.vllm_config
        self.by_layer: dict[int, list[Guard]] = {}
        self.counts = Counts()
        self.records = Records(settings.log if worker.is_driver_worker else None, self.counts)
        self.running: RunningPass | None = None
        self._sampled: RunningPass | None = None
        self._group = 0
        self._spent = 0.0
        worker.sae_guardrail = self
        worker.sae_guardrail_ready, worker.sae_guardrail_records = self.ready, self.records.take
        worker.sae_guardrail_find, worker.sae_guardrail_counts = self.records.find, self.counts.snapshot
        worker.sae_guardrail_expect_check = self.records.expect_check
        worker.load_model = _then(worker.load_model, self._place)
        worker.initialize_from_config = _then(worker.initialize_from_config, self._allocate)
        worker.execute_model = functools.partial(self._execute, worker.execute_model)
        if worker.vllm_config.speculative_config is not None:
            worker.sample_tokens = functools.partial(self._sample, worker.sample_tokens)

    @property
    def guards(self) -> list[Guard]:
        """The guardrails of this worker's layers."""
        return [guard for guards in self.by_layer.values() for guard in guards]

    def ready(self) -> list[str]:
        """Return the names of the guardrails that have a table."""
        return [guard.name for guard in self.guards if guard.table is not None]

    # ------------------------------------------------------------------------------------------------ once, at start

    def _place(self) -> None:
        """Read the guardrails and place them on the loaded model."""
        runner = self.worker.model_runner
        self._runner: Runner = FirstRunner(runner) if hasattr(runner, "input_batch") else SecondRunner(runner)
        model, depth = runner.get_model(), self.vllm_config.model_config.hf_text_config.num_hidden_layers
        layers = find_layers(model, depth)
        for path, name in zip(self.settings.paths, self.settings.names, strict=True):
            guard = Guard(path, name, runner.device)
            check_guardrail(guard.config, name, self.vllm_config)
            if is_elsewhere(layers[guard.config.layer]):
                continue
            recorded = guard.config.base_model.fingerprint if self.settings.check_base else None
            differs = None if recorded is None else difference(recorded, model, layers, guard.config.layer)
            if differs is not None:
                raise GuardrailError(
                    f"{path} was fitted on another model: {differs}. If this is a descendant of it, set check_base to "
                    "false, and measure again."
                )
            self.by_layer.setdefault(guard.config.layer, []).append(guard)
            self.counts.add_guardrail(guard.name, guard.config.action)
        keys = {index: ops.add(functools.partial(self._at_layer, index), index) for index in self.by_layer}
        for index, key in keys.items():
            guard_layer(layers[index], key)
        # Part of the key of compiled code (vLLM 0.32, VllmConfig.compute_hash), which else would be the bare model's.
        placed = {"sae_guardrail_placed": [[keys[g.config.layer], g.digest] for g in self.guards]}
        self.vllm_config.additional_config = {**self.vllm_config.additional_config, **placed}
        if any(guard.config.action == "refuse" for guard in self.guards):
            model.compute_logits = functools.partial(self._refuse, model.compute_logits)
        logger.info("guardrails %s on %s", [(g.config.layer, g.name) for g in self.guards], type(model).__name__)

    def _allocate(self) -> None:
        """Make the tables of states, one state for each slot of the cache."""
        runner, cache = self.worker.model_runner, self.vllm_config.cache_config
        config = runner.kv_cache_config
        self._group = attention_group(config)
        self._block_size = config.kv_cache_groups[self._group].kv_cache_spec.block_size
        model = self.vllm_config.model_config
        longest = model.max_model_len if cache.enable_prefix_caching else 0
        for guard in self.guards:
            slots = config.num_blocks * self._block_size
            guard.allocate(slots, longest, runner.device, model.max_model_len, model.get_vocab_size())

    # --------------------------------------------------------------------------------------------------- every pass

    def _execute(self, execute: Callable[..., Any], scheduled: Any) -> Any:
        begin = time.perf_counter()
        for guard in self.guards:
            if scheduled.kv_cache_block_copies and guard.table is not None:
                guard.table.copy_blocks(scheduled.kv_cache_block_copies, self._block_size)
        self.records.end(scheduled.finished_req_ids)
        tokens = scheduled.total_num_scheduled_tokens
        if not tokens or not self.by_layer:
            return execute(scheduled)
        self._runner.begin(scheduled)
        running = self.running = RunningPass(self._runner, self._group, scheduled, self.settings)
        self._spent = time.perf_counter() - begin  # and at the guarded layers
        try:
            output = execute(scheduled)
        finally:
            self.running = None
        begin = time.perf_counter()
        running.check_complete(tokens, self.by_layer)
        running.note(self.records)
        self._sampled = running
        self.counts.add_pass(self._spent + time.perf_counter() - begin)
        return output

    def _at_layer(self, index: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Judge and edit what a guarded layer returned. Called by the operators of `ops`."""
        if self.running is None:  # profiling or warm-up: no requests, and perhaps no cache yet
            return
        begin = time.perf_counter()
        now = self.running.now
        total = len(now.step.ids)
        hidden = hidden.view(-1, hidden.shape[-1])[:total]
        residual = None if residual is None else residual.view(-1, residual.shape[-1])[:total]
        stream = hidden if residual is None else hidden + residual
        judged = [self.running.judge(guard, stream) for guard in self.by_layer[index]]
        self.running.seen[index] = total
        apply_edits(judged, stream, hidden, residual)
        self._spent += time.perf_counter() - begin

    # ----------------------------------------------------------------------------------------------------- refusals

    def _refuse(self, compute: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        logits, running = compute(hidden, *args, **kwargs), self.running
        if self._runner.sampling:
            running = self._sampled
        if logits is None or running is None:  # of another rank; or prompt logprobs, profiling, warm-up
            return logits
        at = self._runner.logits_at
        if at is None or len(at) != len(logits):
            raise GuardrailNotReady("logits: expected those of the tokens that were prepared. Report this.")
        for guard, (judged, allowed) in reversed(running.judged):  # the first to refuse has the last word
            if guard.config.action == "refuse":
                logits = refuse(logits, at.long(), guard, judged, allowed, running.now)
        return logits

    def _sample(self, sample: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """With drafts, move the records on by those that were kept."""
        output, running = sample(*args, **kwargs), self._sampled
        self._sampled = None
        sampled = getattr(output, "sampled_token_ids", None)
        if running is not None and isinstance(sampled, list):
            longest = self.vllm_config.model_config.max_model_len
            for request, ids in zip(output.req_ids, sampled, strict=True):
                if request in running.drafts and len(ids) > 1:
                    self.records.accept(request, running.kept(request, ids, longest) - 1)
        return output


def attention_group(kv_cache_config: Any) -> int:
    """Return the cache group whose slots the states follow: one of full attention, if any.

    Raises:
        GuardrailUnsupported: If no layer has attention, so that tokens have no slots.
    """
    from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    specs = [next(iter(spec.kv_cache_specs.values())) if hasattr(spec, "kv_cache_specs") else spec for spec in specs]
    for kind in (FullAttentionSpec, AttentionSpec):
        for index, spec in enumerate(specs):
            if isinstance(spec, kind):
                return index
    raise GuardrailUnsupported("The model has no attention layer: expected slots to keep states at. Use generate().")


def _then(call: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def both(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        after()
        return result

    return both
