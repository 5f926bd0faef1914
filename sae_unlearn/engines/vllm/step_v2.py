"""vLLM's second model runner: the one place that knows the names of its buffers.

Written from the source of vLLM 0.32 and never run: it needs a GPU. `Settings.untested` allows it.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sae_unlearn.engines.vllm.passes import Blocks, Pass


class SecondRunner:
    """`GPUModelRunner` of `vllm.v1.worker.gpu.model_runner`. Methods as of `passes.Runner`."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._batch: Any = None
        self._attention: Any = None
        self._new: dict[str, Any] = {}
        self.sampling = False
        runner.prepare_inputs = functools.partial(self._note_batch, runner.prepare_inputs)
        runner.prepare_attn = functools.partial(self._note_attention, runner.prepare_attn)
        runner.sample = functools.partial(self._sample, runner.sample)

    def _note_batch(self, prepare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._batch = prepare(*args, **kwargs)
        return self._batch

    def _note_attention(self, prepare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._attention = prepare(*args, **kwargs)
        return self._attention

    def _sample(self, sample: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.sampling = True  # logits of sampled tokens, and not those of a prompt
        try:
            return sample(*args, **kwargs)
        finally:
            self.sampling = False

    @property
    def logits_at(self) -> Tensor | None:
        return None if self._batch is None else self._batch.logits_indices

    def begin(self, scheduled: Any) -> None:
        self._batch = self._attention = None
        for request in scheduled.finished_req_ids:
            self._new.pop(request, None)
        for new in scheduled.scheduled_new_reqs:  # a request that was preempted comes back as a new one
            self._new[new.req_id] = new

    def requests(self) -> list[str]:
        return list(self._batch.req_ids)

    def params(self, request: str) -> Any:
        return self._new[request].sampling_params

    def ids(self, request: str) -> list[int]:
        new = self._new[request]
        return list(new.prefill_token_ids or new.prompt_token_ids or ())

    def read(self, group: int, shared: bool, seeds: dict[str, int]) -> Pass:
        batch, (tables, slot_mappings) = self._batch, self._attention
        count, total = batch.num_reqs, batch.num_tokens
        bounds = batch.query_start_loc_np[: count + 1].astype(np.int64)
        blocks = Blocks(tables[group][:count], self._runner.block_tables.block_sizes[group])
        starts = batch.query_start_loc[: count + 1].long()
        exact = batch.seq_lens[:count].long() - starts.diff()
        return Pass(
            self.requests(),
            bounds,
            np.array(batch.num_computed_tokens_np[:count], dtype=np.int64),
            np.array(self._runner.req_states.prompt_len.np[batch.idx_mapping_np], dtype=np.int64),
            blocks,
            slot_mappings[group][:total],
            batch.input_ids[:total],
            batch.positions[:total],
            shared,
            seeds,
            blocks.before(exact),
            exact,
        )
