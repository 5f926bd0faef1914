"""The plugin's patches of vLLM: workers, the executor's start, and incoming requests."""

import functools
import json
from typing import Any

from sae_unlearn.engines.prometheus import count_rejected
from sae_unlearn.engines.vllm.limits import check_version
from sae_unlearn.engines.vllm.settings import KEY, Settings, actions, chosen_names
from sae_unlearn.errors import GuardrailError, GuardrailNotReady


EXTENSION = "sae_unlearn.engines.vllm.extension.GuardrailWorker"

_installed: list[bool] = []


def install() -> None:
    """Patch vLLM in this process, once. Without `sae_guardrail` in `additional_config` nothing changes."""
    if _installed:
        return
    _installed.append(True)
    import vllm

    check_version(vllm.__version__, vllm.__version_tuple__)
    _patch_workers()
    _patch_executors()
    _patch_requests()
    _patch_config()


def _patch_workers() -> None:
    # Not WorkerWrapperBase.init_worker: in a process of its own, a worker loads its plugins inside that running call.
    from vllm.v1.worker.worker_base import WorkerBase

    init = WorkerBase.__init__

    @functools.wraps(init)
    def guarded_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        settings = Settings.of(self.vllm_config)
        if settings is not None:
            from sae_unlearn.engines.vllm.worker import WorkerGuards

            WorkerGuards(self, settings)
        elif self.vllm_config.parallel_config.worker_extension_cls == EXTENSION:
            raise GuardrailError(
                f"--worker-extension-cls {EXTENSION}: expected guardrails in --additional-config. Pass "
                f'{{"{KEY}": {{"paths": [...]}}}}.'
            )

    WorkerBase.__init__ = guarded_init


def _patch_executors() -> None:
    from vllm.v1.executor.abstract import Executor

    initialize = Executor.initialize_from_config

    @functools.wraps(initialize)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = initialize(self, *args, **kwargs)
        settings = Settings.of(self.vllm_config)
        if settings is not None:
            check_workers(self, settings)
        return result

    Executor.initialize_from_config = checked


def check_workers(executor: Any, settings: Settings) -> None:
    """Raise unless the workers together hold every guardrail.

    Raises:
        GuardrailNotReady: If the plugin is missing in a worker, or a guardrail is on no layer.
    """
    try:
        ready = executor.collective_rpc("sae_guardrail_ready")
    except Exception as error:
        raise GuardrailNotReady(
            f"A worker does not know the guardrail ({error!r:.80}): expected the plugin in every worker. Install "
            f"sae-unlearn there, and pass --worker-extension-cls {EXTENSION}."
        ) from error
    missing = set(settings.names) - {name for names in ready for name in names}
    if missing:
        raise GuardrailNotReady(f"{sorted(missing)}: expected each guardrail on a layer of some worker. Check paths.")


def _patch_requests() -> None:
    from vllm.exceptions import VLLMValidationError  # it answers 400; a ValueError answers 500 without a text
    from vllm.v1.engine.input_processor import InputProcessor

    process = InputProcessor.process_inputs

    @functools.wraps(process)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        settings = Settings.of(self.vllm_config)
        if settings is not None:
            try:
                check_request(request, settings)
            except GuardrailError as error:
                count_rejected()
                raise VLLMValidationError(str(error), parameter=KEY) from error
        return request

    InputProcessor.process_inputs = checked


def check_request(request: Any, settings: Settings) -> None:
    """Raise if a request cannot be judged, and keep cached prefixes of different guardrails apart.

    Raises:
        GuardrailError: Naming what the request asks for.
    """
    refused = {"prompt_embeds": request.prompt_embeds, "pooling": request.pooling_params}
    refused["resumable"] = request.resumable or None
    refused["images, sound or video"] = request.mm_features or None
    for name, given in refused.items():
        if given is not None:
            raise GuardrailError(f"{name}: expected none, since a guardrail cannot judge it. Send a prompt of tokens.")
    names = chosen_names(request.sampling_params, settings)
    refusing = [name for name, action in actions(settings).items() if action == "refuse" and name in names]
    if refusing and getattr(request.sampling_params, "prompt_logprobs", None) is not None:
        raise GuardrailError(
            f"prompt_logprobs: expected none, since {refusing[0]} refuses, and vLLM computes them without it. Leave "
            "out prompt_logprobs, or echo with logprobs."
        )
    if settings.per_request and (names != settings.names or request.cache_salt is not None):
        # JSON, so that no salt of a client is that of another choice
        request.cache_salt = json.dumps([KEY, names, request.cache_salt])


def _patch_config() -> None:
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config

    @functools.wraps(create)
    def created(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = create(self, *args, **kwargs)
        settings = Settings.of(vllm_config)
        if settings is not None:
            actions(settings)  # read before the model is loaded
            if settings.untested and vllm_config.device_config.device_type != "cpu":
                cut_graphs(vllm_config.compilation_config)
        return vllm_config

    EngineArgs.create_engine_config = created


def cut_graphs(compilation: Any) -> None:
    """Split CUDA graphs at the guardrail's operators, so that their Python runs in every pass."""
    from vllm.config import CUDAGraphMode

    if compilation.cudagraph_mode in (None, CUDAGraphMode.NONE):
        return
    compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    names = ["sae_unlearn::guard", "sae_unlearn::guard_one"]
    compilation.splitting_ops = [*(compilation.splitting_ops or []), *names]
