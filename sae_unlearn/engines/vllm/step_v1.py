"""vLLM's first model runner: the one place that knows the names of its buffers."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sae_unlearn.engines.vllm.passes import Blocks, Pass
from sae_unlearn.guardrail.gate.slot_table import BEGINNING


class FirstRunner:
    """`GPUModelRunner` of `vllm.v1.worker.gpu_model_runner`, also on CPUs, as a `passes.Runner`."""

    sampling = False  # logits are computed inside `execute_model`

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.logits_at: Tensor | None = None
        runner._prepare_inputs = functools.partial(self._note_logits, runner._prepare_inputs)

    def _note_logits(self, prepare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        self.logits_at = prepared[0]
        return prepared

    def begin(self, scheduled: Any) -> None:
        self.logits_at = None

    def requests(self) -> list[str]:
        batch = self._runner.input_batch
        return list(batch.req_ids[: batch.num_reqs])

    def params(self, request: str) -> Any:
        return self._runner.requests[request].sampling_params

    def ids(self, request: str) -> list[int]:
        state = self._runner.requests[request]
        return [*(state.prompt_token_ids or ()), *state.output_token_ids]

    def read(self, group: int, shared: bool, seeds: dict[str, int]) -> Pass:
        runner, batch = self._runner, self._runner.input_batch
        count = batch.num_reqs
        bounds = runner.query_start_loc.np[: count + 1].astype(np.int64)
        total = int(bounds[-1])
        table = batch.block_table[group]
        blocks = Blocks(table.get_device_tensor(count), table.block_size)
        computed = np.array(batch.num_computed_tokens_cpu[:count], dtype=np.int64)
        exact, before = None, _before(table, computed)
        if getattr(runner, "use_async_spec_decode", False):  # the host counts drafts that may have been rejected
            exact = runner.num_computed_tokens[:count].long()
            before = blocks.before(exact)
        return Pass(
            self.requests(),
            bounds,
            computed,
            np.array(batch.num_prompt_tokens[:count], dtype=np.int64),
            blocks,
            table.slot_mapping.gpu[:total],
            runner.input_ids.gpu[:total],
            runner.positions[:total],
            shared,
            seeds,
            before,
            exact,
        )


def _before(table: Any, computed: np.ndarray) -> Any:
    """`Blocks.before` on the host."""
    last, row = np.maximum(computed - 1, 0), np.arange(len(computed))
    blocks = table.get_numpy_array()[row, last // table.block_size].astype(np.int64)
    return np.where(computed > 0, blocks * table.block_size + last % table.block_size, BEGINNING)
