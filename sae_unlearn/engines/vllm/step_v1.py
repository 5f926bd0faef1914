"""A `PackedStep` from vLLM's first model runner: the one place that knows the names of its buffers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.packed import Rows
from sae_unlearn.guardrail.packed_step import PackedStep
from sae_unlearn.guardrail.runtime.slot_table import BEGINNING, CacheSlots


class Blocks:
    """The cache blocks of the rows of a pass.

    Attributes:
        table: `[R, most]` int32, the blocks of each row in order.
        size: tokens in a block.
    """

    def __init__(self, table: Tensor, size: int) -> None:
        self.table, self.size = table, size

    def slot_of(self, row: Tensor, position: Tensor) -> Tensor:
        """The slots of the tokens at `position` in the rows `row`, of one shape."""
        return self.table[row, position // self.size].long() * self.size + position % self.size


class Pass:
    """One forward pass.

    Attributes:
        step: the `PackedStep`.
        requests: `[R]`, the ids of the rows' requests.
        blocks: where their tokens lie.
        starts, lengths: `[R]` on the host, each row's first token and number of tokens.
    """

    def __init__(self, runner: Any, group: int, shared: bool, seeds: dict[str, int]) -> None:
        batch = runner.input_batch
        count = batch.num_reqs
        self.requests: list[str] = list(batch.req_ids[:count])
        bounds = runner.query_start_loc.np[: count + 1].astype(np.int64)
        self.starts, self.lengths = bounds[:-1], np.diff(bounds)
        total, device = int(bounds[-1]), runner.device
        table = batch.block_table[group]
        self.blocks = Blocks(table.get_device_tensor(count), table.block_size)
        computed = np.array(batch.num_computed_tokens_cpu[:count], dtype=np.int64)
        prompts = np.array(batch.num_prompt_tokens[:count], dtype=np.int64)
        self.computed, self.prompts = computed, prompts
        ends = self.starts + np.maximum(prompts - 1 - computed, 0)
        seed = [seeds.get(name, 0) if at == 0 else 0 for name, at in zip(self.requests, computed, strict=True)]
        host = [self.starts, self.lengths, ends, computed, self._before(table, computed), np.array(seed)]
        by_row = torch.from_numpy(np.stack(host)).to(device, non_blocking=True).unbind()
        of_token = torch.from_numpy(np.repeat(np.arange(count), self.lengths)).to(device, non_blocking=True)
        slots = CacheSlots(
            of_token=table.slot_mapping.gpu[:total].long(),
            before=by_row[4],
            computed=by_row[3],
            shared=shared,
            seeds=by_row[5] if any(seed) else None,
        )
        if getattr(runner, "use_async_spec_decode", False):  # the host counts drafts that may have been rejected
            slots = self._on_device(slots, runner.num_computed_tokens[:count].long())
        self.step = PackedStep(
            rows=Rows(of_token, by_row[0], by_row[1]),
            ids=runner.input_ids.gpu[:total].long(),
            positions=runner.positions[:total],
            prompt_end=by_row[2],
            slots=slots,
            one_each=total == count,
        )

    def _before(self, table: Any, computed: np.ndarray) -> np.ndarray:
        last, row = np.maximum(computed - 1, 0), np.arange(len(computed))
        blocks = table.get_numpy_array()[row, last // table.block_size].astype(np.int64)
        return np.where(computed > 0, blocks * table.block_size + last % table.block_size, BEGINNING)

    def _on_device(self, slots: CacheSlots, computed: Tensor) -> CacheSlots:
        row = torch.arange(len(computed), device=computed.device)
        before = self.blocks.slot_of(row, (computed - 1).clamp(min=0))
        return slots._replace(before=torch.where(computed > 0, before, BEGINNING), computed=computed)

    def check_whole_prompts(self) -> None:
        """Raise if a prompt is not in one pass, which `gate_scope="sequence"` needs.

        Raises:
            GuardrailUnsupported: Naming the flag.
        """
        cut = (self.computed + self.lengths < self.prompts) | ((self.computed > 0) & (self.computed < self.prompts))
        if cut.any():
            raise GuardrailUnsupported(
                'gate_scope="sequence": expected whole prompts, got a piece of one. Start vLLM with '
                "--no-enable-chunked-prefill and --no-enable-prefix-caching."
            )
