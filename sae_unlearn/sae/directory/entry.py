"""One published SAE, as the directory lists it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


RESIDUAL = "residual"
"""The place that a guardrail can read and edit: the output of a decoder layer."""

REFUSED_PLACES = {
    "mlp": "the output of an MLP, and a guardrail edits the output of a whole decoder layer",
    "attention": "the output of the attention, and a guardrail edits the output of a whole decoder layer",
    "residual_mid": "the residual stream inside a decoder layer, between attention and MLP",
    "embedding": "the embedding, before the first decoder layer",
    "transcoder": "a transcoder: it predicts another place than the one that it reads",
    "temporal": "a temporal SAE: its features depend on earlier tokens, so a token cannot be edited by itself",
    "scaled": "scaled by each token's own norm, which cannot be folded into its weights",
    "unknown": "of a place that its name does not show",
}
"""Places that are refused, and what such an SAE reads or is."""

APPROXIMATE = frozenset({"Qwen-Scope", "EleutherAI", "OpenAI"})
"""Families of top-k SAEs, which a guardrail approximates by thresholds (`topk="threshold"`)."""


@dataclass(frozen=True)
class PublishedSAE:
    """A published SAE of the residual stream.

    Attributes:
        model (str): Hub id of the model whose activations it was trained on.
        family (str): The publication it belongs to, e.g. `"Gemma Scope"`.
        release (str): Name of the release in SAELens.
        id (str): Its id in the release.
        repository (str): Hub id of the repository.
        subfolder (str): Folder, or file, in the repository; empty for its root.
        layer (int): 0-based decoder layer whose output it reads.
        width (int, *optional*): Number of features, if the name tells it.
        l0 (float, *optional*): Mean number of active features per token, if it was published.
        license (str, *optional*): SPDX id of the license of the weights, if it is known.
        neuronpedia_id (str, *optional*): Its page on Neuronpedia.
    """

    model: str
    family: str
    release: str
    id: str
    repository: str
    subfolder: str
    layer: int
    width: int | None = None
    l0: float | None = None
    license: str | None = None
    neuronpedia_id: str | None = None

    @property
    def name(self) -> str:
        """`RELEASE/ID`, which `SparseAutoencoder.from_pretrained` and `--sae` take."""
        return f"{self.release}/{self.id}"

    @property
    def approximate(self) -> bool:
        """True if a guardrail approximates its features, as those of a top-k SAE."""
        return self.family in APPROXIMATE or "_topk_" in self.release

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes and the name as JSON values."""
        return {"name": self.name, **asdict(self)}
