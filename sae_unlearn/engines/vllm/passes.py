"""One forward pass of vLLM as a `PackedStep`, of values that either model runner has."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.gate.packed import Rows
from sae_unlearn.guardrail.gate.packed_step import PackedStep
from sae_unlearn.guardrail.gate.slot_table import BEGINNING, CacheSlots


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

    def before(self, computed: Tensor) -> Tensor:
        """`[R]`: the slot of each row's last earlier token, of `computed [R]` tokens."""
        row = torch.arange(len(computed), device=computed.device)
        return torch.where(computed > 0, self.slot_of(row, (computed - 1).clamp(min=0)), BEGINNING)


class Pass:
    """One forward pass of `R` rows and `T` tokens.

    Args:
        requests (list of str): `[R]`, the ids of the rows' requests.
        bounds (np.ndarray): `[R + 1]` int64, each row's first token, then `T`.
        computed, prompts (np.ndarray): `[R]` int64, tokens of each row before the pass, and of its prompt.
        blocks (Blocks): Where the rows' tokens lie.
        slots, ids, positions (Tensor): `[T]` on the device, of each token.
        shared (bool): See `CacheSlots`.
        seeds (dict): Seeds of the stamps by request; 0 for those that are not there.
        before (np.ndarray or Tensor): `[R]`, the slot of each row's last earlier token.
        exact (Tensor, *optional*): `[R]` int64 on the device, in the place of `computed` where the host may count
            drafts that were rejected.

    Attributes:
        step: the `PackedStep`.
        starts, lengths: `[R]` on the host, each row's first token and number of tokens.
    """

    def __init__(
        self,
        requests: list[str],
        bounds: np.ndarray,
        computed: np.ndarray,
        prompts: np.ndarray,
        blocks: Blocks,
        slots: Tensor,
        ids: Tensor,
        positions: Tensor,
        shared: bool,
        seeds: dict[str, int],
        before: "np.ndarray | Tensor",
        exact: Tensor | None = None,
    ) -> None:
        self.requests, self.blocks = requests, blocks
        self.starts, self.lengths = bounds[:-1], np.diff(bounds)
        self.computed, self.prompts = computed, prompts
        count, device = len(requests), ids.device
        ends = self.starts + np.maximum(prompts - 1 - computed, 0)
        seed = np.array([seeds.get(name, 0) if at == 0 else 0 for name, at in zip(requests, computed, strict=True)])
        one_each = int(bounds[-1]) == count
        host = [self.starts, self.lengths, ends, computed, seed, computed + 1]
        if not isinstance(before, Tensor):
            host.append(before)
        by_row = torch.from_numpy(np.stack(host)).to(device, non_blocking=True).unbind()
        of_token = torch.from_numpy(np.repeat(np.arange(count), self.lengths)).to(device, non_blocking=True)
        self.step = PackedStep(
            rows=Rows(of_token, by_row[0], by_row[1]),
            ids=ids.long(),
            positions=positions,
            prompt_end=by_row[2],
            slots=CacheSlots(
                of_token=slots.long(),
                before=before if isinstance(before, Tensor) else by_row[6],
                computed=by_row[3] if exact is None else exact,
                shared=shared,
                seeds=by_row[4] if seed.any() else None,
            ),
            one_each=one_each,
            counted_up=by_row[5] if one_each and exact is None else None,
        )

    def check_whole_prompts(self) -> None:
        """Raise if a prompt is not in one pass, which `gate_scope="sequence"` needs.

        Raises:
            GuardrailUnsupported: Naming the flag.
        """
        cut = (self.computed + self.lengths < self.prompts) | ((self.computed > 0) & (self.computed < self.prompts))
        if cut.any():
            raise GuardrailUnsupported(
                'gate_scope="sequence": expected whole prompts, got a piece of one. Start vLLM with '
                "--no-enable-chunked-prefill and --no-enable-prefix-caching, or fit with --for-serving."
            )


class Runner(Protocol):
    """Interface of a worker's model runner for the guardrails."""

    @property
    def logits_at(self) -> Tensor | None:
        """Tokens of the pass whose logits are computed, `[L]`."""

    @property
    def sampling(self) -> bool:
        """True while logits are computed for sampling after `execute_model`."""

    def begin(self, scheduled: Any) -> None:
        """Read the schedule before `execute_model`."""

    def requests(self) -> list[str]:
        """Return the ids of the requests in the pass, in the order of its rows."""

    def params(self, request: str) -> Any:
        """The `SamplingParams` of a request."""

    def ids(self, request: str) -> list[int]:
        """The token ids of a request that are known to the host."""

    def read(self, group: int, shared: bool, seeds: dict[str, int]) -> Pass:
        """The pass that is being computed, with the slots of a group of the cache."""
