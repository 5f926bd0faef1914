"""What a reader hands back: the folded weights of one autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, eq=False)
class SAEWeights:
    """Folded weights in the file's dtype, or in float64 where folding changed them.

    Attributes:
        W_enc, b_enc, W_dec, b_dec, threshold, architecture, k, layer, input_norm: as in `SparseAutoencoder`.
        weights_file: the file the tensors came from; its sha256 identifies the SAE.
        neuronpedia_id: of its page at neuronpedia.org, "<model>/<layer and set>", where the file names one.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    weights_file: Path
    architecture: str
    threshold: torch.Tensor | None = None
    k: int | None = None
    layer: int | None = None
    neuronpedia_id: str | None = None
    input_norm: str | None = None
