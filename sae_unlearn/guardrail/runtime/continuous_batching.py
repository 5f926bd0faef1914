"""Connection of transformers' continuous batching (`generate_batch`) to the guardrails of a model.

transformers (5.16 to 5.24) calls the model in a thread of its own, from `ContinuousBatchProcessor._generation_step`.
The arguments of the call do not say which requests they are of, and a CUDA graph is replayed without any Python. So,
once a guardrail is attached, that method notes its processor for the hooks, and refuses settings under which a
guardrail cannot work; `update_batch` ends the records of requests. Models without guardrails are not affected.
"""

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor

from sae_unlearn.backbone.private_api import prompt_length
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported
from sae_unlearn.guardrail.runtime.hooks import LOST, ModelHooks, any_in_force, hooks_of
from sae_unlearn.guardrail.runtime.paged_guards import PagedGuards, Request, stepping


_STEP = "_generation_step"
_GUARDS: "WeakKeyDictionary[Any, PagedGuards]" = WeakKeyDictionary()


def watch_generation() -> None:
    """Make every `ContinuousBatchProcessor` note its steps for guarded models. Safe to call again."""
    step, update = getattr(ContinuousBatchProcessor, _STEP), ContinuousBatchProcessor.update_batch
    if getattr(step, "watched", False):
        return

    @functools.wraps(step)
    def watched(self: Any, model: nn.Module) -> Any:
        if hooks_of(model, ModelHooks) is None:
            return step(self, model)
        with stepping(_begun(self)) as guards:
            result = step(self, model)
        if not guards.passed and any_in_force(model):
            raise GuardrailNotReady(LOST)
        return result

    @functools.wraps(update)
    def updated(self: Any) -> None:
        guards = _GUARDS.get(self)
        if guards is None:
            return update(self)
        end = functools.partial(guards.end, functools.partial(_is_running, self.scheduler))
        router, self.output_router = self.output_router, _RecordsFirst(self.output_router, end)
        try:
            update(self)
        finally:
            self.output_router = router
        return end()

    watched.watched = True  # type: ignore[attr-defined]
    setattr(ContinuousBatchProcessor, _STEP, watched)
    ContinuousBatchProcessor.update_batch = updated


class _RecordsFirst:
    """transformers' router of answers, which ends records before their answers are delivered."""

    def __init__(self, router: Any, end: Callable[[], None]) -> None:
        self._router, self._end = router, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)

    def deliver_batch(self, outputs: list[Any]) -> None:
        self._end()
        self._router.deliver_batch(outputs)


def _begun(processor: Any) -> PagedGuards:
    guards = _GUARDS.get(processor)
    if guards is None:
        _check_settings(processor.cb_config)
        guards = _GUARDS[processor] = PagedGuards(processor.cache)
    guards.end(functools.partial(_is_running, processor.scheduler))
    batch = processor.inputs_and_outputs.requests_in_batch
    guards.begin(
        [
            Request(
                each.state.request_id,
                each.state.position_offset - each.query_length,
                each.query_length,
                prompt_length(each.state),
            )
            for each in batch
        ]
    )
    return guards


def _is_running(scheduler: Any, request: str) -> bool:
    return request in scheduler.active_requests or request in scheduler.waiting_requests


def _check_settings(config: Any) -> None:
    """Raise if the settings of continuous batching are ones under which a guardrail cannot work.

    Args:
        config (ContinuousBatchingConfig): As transformers has completed it.

    Raises:
        GuardrailUnsupported: Naming the setting.
    """
    refused = {
        "use_cuda_graph": (any(config.cuda_graph_booleans), "False, since a replayed graph runs no checks"),
        "varlen_compile_config": (config.varlen_compile_config is not None, "None"),
        "decode_compile_config": (config.decode_compile_config is not None, "None"),
        "use_async_batching": (bool(config.use_async_batching), "False"),
        "cpu_offload_space": (config.cpu_offload_space != 0, "0, since states do not move to the host"),
    }
    for name, (given, expected) in refused.items():
        if given:
            raise GuardrailUnsupported(
                f"{name}={getattr(config, name)!r:.60}: expected {expected}, with a guardrail on the model. Set it in "
                "`ContinuousBatchingConfig`."
            )
