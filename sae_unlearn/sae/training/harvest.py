"""Activations of a layer on disk, written by truncated forward passes that can be interrupted.

Several processes (see `backbone.distributed`) write into one file, each the rows of its own passes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sae_unlearn.backbone.distributed import by_first, gathered, is_mine, process_count, process_index
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.atomic import write_whole
from sae_unlearn.files.digest import sha256


ACTIVATIONS, STATE = "activations.npy", "harvest.json"
EVERY = 32  # forward passes between two notes of how far it got
OUTLIER_FACTOR = 2.0
"""Tokens whose norm exceeds this multiple of the median are left out of training and measures."""
SAMPLE = 200_000  # tokens that means and medians are taken of


class Activations:
    """Outputs of a decoder layer on disk, `[rows, context - 1, d_in]` float32 without first tokens.

    Attributes:
        values: The memory map.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self._flat = values.reshape(-1, values.shape[-1])

    def __len__(self) -> int:
        return len(self._flat)

    def tokens(self, index: Tensor) -> Tensor:
        """The activations of tokens by their numbers, `[n, d_in]` float32."""
        order = index.argsort()
        found = torch.from_numpy(self._flat[index[order].numpy()].astype(np.float32, copy=False))
        return found[order.argsort()]

    def norms(self) -> Tensor:
        """The norm of every token, `[n]`."""
        parts = [torch.from_numpy(np.array(self._flat[i : i + 65536])) for i in range(0, len(self), 65536)]
        return torch.cat([part.norm(dim=-1) for part in parts])


def usual_tokens(activations: Activations) -> Tensor:
    """Numbers of the tokens that are not outliers: their norm is at most twice the median."""
    norms = activations.norms()
    return (norms <= OUTLIER_FACTOR * norms.median()).nonzero().squeeze(-1)


def layer_outputs(
    model: nn.Module, layer: int, rows: Tensor, rows_per_pass: int, wanted: Callable[[int], bool] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers of rows and their outputs, `[batch, context - 1, d_in]` float32, without first tokens.

    Passes whose number is not `wanted` are left out; None runs all.
    """
    for batch in residual_batches(model, rows.tolist(), layer, rows_per_pass, wanted=wanted):
        yield torch.tensor(batch.index), batch.residual[:, 1:].float().cpu()


def harvest(
    model: nn.Module, layer: int, rows: Tensor, folder: Path, rows_per_pass: int = 8, progress: bool = True
) -> Activations:
    """Write the outputs of a decoder layer to disk; the same call continues after an interruption.

    Processes of a launch share the passes, so `folder` must be on a disk that all of them see.

    Args:
        model (Module): The bare transformers model.
        layer (int): 0-based decoder layer. Later layers are not run.
        rows (Tensor): Token ids `[n, context]`.
        folder (Path): Gets `activations.npy` and a note of how far it got.
        rows_per_pass (int, *optional*, defaults to 8): Rows of a forward pass.
        progress (bool, *optional*, defaults to True): Show a bar.

    Raises:
        UnlearnError: If the folder holds the activations of other rows or of another layer.
    """
    path, state = folder / ACTIVATIONS, folder / STATE
    about = {"layer": layer, "rows": sha256(rows.numpy().tobytes())}
    width: int = model.config.get_text_config(decoder=True).hidden_size  # type: ignore[union-attr, operator]
    done = by_first(lambda: _begin(folder, about, (len(rows), rows.shape[1] - 1, width)))
    values = np.lib.format.open_memmap(path, mode="r+")
    hidden = not progress or process_index() > 0
    with tqdm(total=len(rows), initial=done, unit="row", desc="activations", disable=hidden) as bar:
        while done < len(rows):
            part = rows[done : done + EVERY * rows_per_pass]
            for index, residual in layer_outputs(model, layer, part, rows_per_pass, is_mine):
                values[(done + index).numpy()] = residual.numpy()
                bar.update(min(len(index) * process_count(), done + len(part) - bar.n))
            values.flush()
            done += len(part)
            bar.update(done - bar.n)
            gathered(done)  # all have written their rows
            if process_index() == 0:
                write_whole(state, json.dumps(about | {"done": done}))
    return Activations(values)


def _begin(folder: Path, about: dict[str, Any], shape: tuple[int, ...]) -> int:
    """Return the number of rows that an earlier call has written; make the file if there was none."""
    state = folder / STATE
    if state.is_file():
        found = json.loads(state.read_text(encoding="utf-8"))
        done: int = found.pop("done")
        if found != about:
            raise UnlearnError(f"work_dir={folder}: expected this run's activations, got others. Pass another folder.")
        return done
    folder.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(folder / ACTIVATIONS, mode="w+", dtype=np.float32, shape=shape)
    return 0
