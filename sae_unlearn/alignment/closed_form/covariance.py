"""Second moments of projection inputs over text to keep, from forward passes and cached on disk."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_unlearn.alignment.closed_form.projections import Projection, tapped
from sae_unlearn.backbone.adapters_off import adapters_off, base_parameters
from sae_unlearn.backbone.identity import parameters_digest
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.files.atomic import staged


logger = logging.getLogger(__name__)

GROUPS = {"name": 1.0, "value": 2.0, "rest": 0.5, "text": 2.0, "short": 1.0}
"""Weight of each group of tokens.

The groups are last tokens of other entities' names and of their attributes' values, the other tokens of those prompts,
ordinary text, and short prompts of other relations.
"""
RIDGE = 0.01
_SAVE_EVERY = 32  # batches
_FORMAT = 2


class StayRow(NamedTuple):
    """A row whose states are to stay.

    Attributes:
        input_ids (list of int): Token ids.
        groups (list of str): For each token its group, a key of `GROUPS`, or "" for a token that does not count.
    """

    input_ids: list[int]
    groups: list[str]


class Moments(NamedTuple):
    """Second moments of the inputs `k` of each projection, in the base model.

        C_l = sum over groups g of  weight_g * mean over the tokens of g of  k k'

    Attributes:
        matrices (dict[int, Tensor]): For each layer `C_l`, `[d_in, d_in]` in float32.
    """

    matrices: dict[int, Tensor]

    def factor(self, layer: int) -> Tensor:
        """Return the Cholesky factor of `C_l + ridge * mean(diag C_l) * I`, `[d_in, d_in]` in float32.

        Args:
            layer (int): 0-based decoder layer.
        """
        c = self.matrices[layer].double()
        c.diagonal().add_(RIDGE * c.diagonal().mean().clamp(min=1e-12))
        factor: Tensor = torch.linalg.cholesky(c)
        return factor.float()


def token_weights(rows: Sequence[StayRow]) -> list[list[float]]:
    """Return the weight of each token, `weight_g / tokens of g`: weighted sums are sums of group means."""
    counts = dict.fromkeys(GROUPS, 0)
    for row in rows:
        for group in row.groups:
            if group:
                counts[group] += 1
    return [[GROUPS[g] / counts[g] if g else 0.0 for g in row.groups] for row in rows]


@torch.no_grad()
def stream_moments(
    model: nn.Module, rows: Sequence[StayRow], sites: Sequence[Projection], batch_size: int, cache: Path | None = None
) -> Moments:
    """Return the second moments over `rows`, by one truncated forward pass with the adapters disabled.

    With a cache folder the result is stored in a folder named by a digest of the base weights, the rows, their
    weights and the layers, and is read from there the next time. An interrupted run resumes at its last save: the order
    of the batches is fixed, so the result is the same to the bit.

    Args:
        model (nn.Module): The bare transformers model, with or without PEFT layers.
        rows (Sequence[StayRow]): The rows.
        sites (Sequence[Projection]): The projections.
        batch_size (int): Rows per forward pass.
        cache (Path, *optional*): A folder. For each digest it gets one float32 matrix `[d_in, d_in]` per layer.
    """
    weights = token_weights(rows)
    key = inputs_digest(model, rows, weights, sites, batch_size)
    store = None if cache is None else _Store(Path(cache) / key)
    done, matrices = (0, {}) if store is None else store.load()
    batches = -(-len(rows) // batch_size)
    if done >= batches:
        logger.info("Covariances of %d rows read from %s", len(rows), store and store.folder)
        return Moments({layer: c.to(_device(sites)) for layer, c in matrices.items()})
    with adapters_off(model), tapped(sites) as taps:
        ids = [row.input_ids for row in rows]
        for batch in residual_batches(model, ids, sites[-1].layer, batch_size, wanted=lambda number: number >= done):
            weight = torch.zeros(batch.kept.shape)
            for i, row in enumerate(batch.index):
                weight[i, : len(weights[row])] = torch.tensor(weights[row])
            counted = weight > 0
            for site in sites:
                k = taps.read(site.layer, batch.residual)[0]
                k = k[counted.to(k.device)] * weight[counted].sqrt()[:, None].to(k.device)
                if site.layer not in matrices:
                    matrices[site.layer] = torch.zeros(k.shape[1], k.shape[1], device=k.device)
                matrices[site.layer] = matrices[site.layer].to(k.device).addmm_(k.T, k)
            if store is not None and ((batch.number + 1) % _SAVE_EVERY == 0 or batch.number + 1 == batches):
                store.save(batch.number + 1, matrices)
    return Moments(matrices)


def inputs_digest(
    model: nn.Module,
    rows: Sequence[StayRow],
    weights: Sequence[Sequence[float]],
    sites: Sequence[Projection],
    batch_size: int,
) -> str:
    """Return a hash of up to 64 values of every base weight, the rows, their weights and the layers."""
    digest = parameters_digest(base_parameters(model), 64)
    content = [_FORMAT, batch_size, [site.name for site in sites], [row.input_ids for row in rows], list(weights)]
    digest.update(json.dumps(content).encode())
    return digest.hexdigest()[:24]


class _Store:
    """The moments of one digest on disk, whole or up to some batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> tuple[int, dict[int, Tensor]]:
        """The number of batches summed so far, and the sums."""
        path = self.folder / "moments.safetensors"
        if not path.is_file():
            return 0, {}
        found = load_file(path)
        done = int(found.pop("batches"))
        return done, {int(name): value for name, value in found.items()}

    def save(self, done: int, matrices: dict[int, Tensor]) -> None:
        tensors = {str(layer): c.cpu().contiguous() for layer, c in matrices.items()}
        with staged(self.folder) as stage:
            save_file({**tensors, "batches": torch.tensor(done)}, stage / "moments.safetensors")


def _device(sites: Sequence[Projection]) -> torch.device:
    return next(sites[0].module.parameters()).device
