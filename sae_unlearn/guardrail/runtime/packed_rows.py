"""Padding-free batches: several texts in one row, as `DataCollatorWithFlattening` makes them.

transformers (5.16 to 5.24) tells the texts apart by `position_ids` that restart, if the call has neither a mask nor a
cache; flash attention also by `cu_seq_lens_q`. Each text is judged as if it were alone. Batches whose texts the model
would mix are refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.packed import Rows
from sae_unlearn.guardrail.gate.packed_step import Judged, PackedStep, judge
from sae_unlearn.guardrail.runtime.gate_history import Owner
from sae_unlearn.guardrail.runtime.packing import packing_argument
from sae_unlearn.guardrail.runtime.recording import Recorder
from sae_unlearn.guardrail.weights import LayerGuardrail


_PLACES = ("cu_seq_lens_q", "cu_seq_lens_k")
_UNKNOWN = ("block_sequence_ids", "cu_seqlens", "cu_seqlens_q", "cu_seqlens_k")


class WholeRows:
    """A pass of texts that begin and end in it, as a `packed_pass.PackedPass`."""

    def __init__(self, step: PackedStep) -> None:
        self.step = step

    def check_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise unless the attention of a decoder layer keeps the texts apart.

        Flash attention reads their places itself. Any other needs a mask in which no token sees another text.

        Args:
            layer (nn.Module): The decoder layer.
            args, kwargs: Its arguments.

        Raises:
            GuardrailUnsupported: If it does not, or this cannot be seen.
        """
        rows = self.step.rows
        total = len(rows.of_token)
        if len(rows.start) == 1:
            return
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        masks = [value for value in given if value.ndim == 4 and value.shape[-2:] == (total, total)]
        other = rows.of_token[:, None] != rows.of_token[None]
        for mask in masks:
            shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            if bool((shown & other.to(mask.device)).any()):
                raise GuardrailUnsupported(
                    "position_ids restart within a row, but the model's attention mixes these packed sequences. Pad "
                    "the batch."
                )
        if not masks and not attention_of(layer).startswith("flash"):
            raise GuardrailUnsupported(
                f"attn_implementation={attention_of(layer)!r}: expected sdpa, eager or flash attention and a model "
                "that reads position_ids, since its mask does not separate packed sequences. Pad the batch."
            )

    def judge(self, owner: Owner, hidden: Tensor, guard: LayerGuardrail, tables: ConfigTables) -> Judged:
        """Judge the tokens of the pass, `hidden [T, d_in]`."""
        return judge(hidden, self.step, guard.config, guard.encoder, guard.decoder, tables)

    def last_ids(self, owner: Owner, count: int) -> Tensor:
        """Return the ids of each text's last `count` tokens, `[R, count]`, -1 before its first one."""
        last = self.step.rows.last
        at = last[:, None] + last.new_tensor(range(1 - count, 1))
        return self.step.ids[at.clamp(min=0)].masked_fill(at < self.step.rows.start[:, None], -1)

    def record(self, owner: Owner, config: SAEGuardrailConfig, judged: Judged, recorders: list[Recorder]) -> None:
        """Note the texts' states: one request with a row for each."""
        for recorder in recorders:
            recorder.note(owner[1], config, judged.decision.state[self.step.rows.last])


def attention_of(module: nn.Module) -> str:
    """Return the name of the attention that a module's config asks for, "" without one."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None:
            return str(getattr(config, "_attn_implementation", None) or "")
    return ""


def rows_of_call(
    given: Mapping[str, Any], mask: Any, positions: Tensor | None, backbone: nn.Module, cached: bool
) -> WholeRows | None:
    """Return the texts of a padding-free batch.

    None if the call is not one, or if transformers would mix its texts: with a cache, without positions, or if the
    places of the texts contradict each other. It waits for the device if the call has positions, and no mask or cache.

    Args:
        given (Mapping[str, Any]): The backbone's arguments by name.
        mask (Any): The attention mask of the call.
        positions (Tensor, *optional*): `[batch or 1, T]`, its positions, see `packing.text_positions`.
        backbone (nn.Module): The backbone.
        cached (bool): The call has a cache, or recurrent layers.
    """
    use_cache = given.get("use_cache")
    use_cache = getattr(getattr(backbone, "config", None), "use_cache", False) if use_cache is None else use_cache
    foreign = any(given.get(name) is not None for name in _UNKNOWN)
    if torch.compiler.is_compiling() or foreign or cached or use_cache or mask is not None:
        return None
    if positions is None or given.get("input_ids") is None or given["input_ids"].shape[0] != 1:
        return None
    ids, begins = given["input_ids"][0], positions[0].diff() != 1
    starts = torch.nn.functional.pad(begins.nonzero()[:, 0] + 1, (1, 0))
    if (len(starts) == 1 and packing_argument(given) is None) or not _agree(given, starts, len(ids)):
        return None
    rows = Rows.of(torch.nn.functional.pad(starts, (0, 1), value=len(ids)), len(ids))
    places = torch.arange(len(ids), device=ids.device) - rows.start[rows.of_token]
    return WholeRows(PackedStep(rows=rows, ids=ids.long(), positions=places, prompt_end=rows.last))


def _agree(given: Mapping[str, Any], starts: Tensor, total: int) -> bool:
    """Return True if all arguments that tell texts apart tell those that begin at `starts`."""
    expected = [*starts.tolist(), total]
    if any(given.get(name) is not None and torch.as_tensor(given[name]).tolist() != expected for name in _PLACES):
        return False
    numbers = given.get("seq_idx")
    return numbers is None or (numbers.reshape(-1).diff().nonzero()[:, 0] + 1).tolist() == expected[1:-1]
