"""`scout`: how well each layer separates the topic, from one pass over the texts before a fit.

A row is pooled to `x`, the mean of a layer's output over its content tokens without outliers. The probe is a diagonal
linear discriminant, which has nothing to tune; over the rows of one half,

    s(x) = sum_d x_d (mean_forget,d - mean_retain,d) / (var_d + mean(var) / 100)

and its AUROC is taken on the other half, and the other way round. For an SAE, with `r_j` the share of a row's content
tokens at which feature j is active and `w_j` the log-likelihood ratio of that (see `fit.selection`),

    s(row) = sum_j w_j r_j      over the 40 features with the largest w_j * mean_forget r_j of one half

The headroom of the usual dose at a layer compares its edit with what tells the topic there:

    headroom = 0.5 median |h| / |mean_forget - mean_retain|

with the median norm of a token and the means over rows. Below 1 the usual dose, half of the stream's norm, is smaller
than the topic's own shift of the stream.

Short text is the first 24 tokens of the same rows. A model is causal, so no second pass is needed for them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import bare_model, find_decoder_layers, residual_of
from sae_unlearn.backbone.tokens import read_corpus, special_token_ids
from sae_unlearn.cards.plotting import BLUE, VERMILLION, new_canvas
from sae_unlearn.checks import check_all, check_integer
from sae_unlearn.errors import UnlearnError, as_guardrail_error
from sae_unlearn.guardrail.fit.row_statistics import SHORT_TOKENS
from sae_unlearn.guardrail.gate.offline import unguarded_residuals
from sae_unlearn.options.field import merged, takes_options
from sae_unlearn.options.fit import CLAMP_SCALES
from sae_unlearn.options.scout import ScoutConfig
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.choice import sae_for
from sae_unlearn.sae.compatibility import check_sae
from sae_unlearn.stats import auc


NUM_FEATURES = 40
OUTLIER_FACTOR = 2.0
LEAST_TEXTS = 8


@dataclass(frozen=True)
class LayerScore:
    """Separation of the topic by one layer, or by one SAE of it.

    Attributes:
        layer (int): 0-based decoder layer whose output is read.
        sae (str or None): Name of the SAE; None for the raw probe.
        auroc (float): AUROC on whole rows.
        auroc_short (float): AUROC on their first 24 tokens.
        headroom (float): Norm of the usual dose's edit in units of the topic's own shift of the layer's output.
    """

    layer: int
    sae: str | None
    auroc: float
    auroc_short: float
    headroom: float

    @property
    def mean(self) -> float:
        """The mean of both."""
        return (self.auroc + self.auroc_short) / 2


@dataclass(frozen=True)
class Scouting:
    """The scores of all layers and SAEs.

    Attributes:
        scores (tuple[LayerScore, ...]): Raw probes by layer, then SAEs in the order given.
        rows (tuple[int, int]): Number of texts of the topic, and of other texts.
    """

    scores: tuple[LayerScore, ...]
    rows: tuple[int, int]

    @property
    def best(self) -> LayerScore:
        """The best SAE, or the best layer if no SAE was given; the earliest of equal ones."""
        saes = [score for score in self.scores if score.sae is not None]
        return max(saes or self.scores, key=lambda score: (round(score.mean, 3), -score.layer))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw AUROC over layers, as a PNG, and return its path.

        Args:
            path (str or PathLike): File of the picture.
        """
        figure = new_canvas(7, 4.2)
        axes = figure.add_subplot()
        probes = sorted((s for s in self.scores if s.sae is None), key=lambda s: s.layer)
        layers = [s.layer for s in probes]
        axes.plot(layers, [s.auroc for s in probes], "-o", color=BLUE, label="raw probe, whole rows")
        axes.plot(
            layers, [s.auroc_short for s in probes], "--o", color=BLUE, markerfacecolor="white", label="short text"
        )
        saes = [s for s in self.scores if s.sae is not None]
        if saes:
            places = [s.layer for s in saes]
            axes.plot(places, [s.auroc for s in saes], "D", color=VERMILLION, label="SAE, whole rows")
            axes.plot(places, [s.auroc_short for s in saes], "D", color=VERMILLION, markerfacecolor="white")
        low = min(s.auroc_short for s in self.scores)
        axes.set_ylim(min(0.5, low, *(s.auroc for s in self.scores)) - 0.02, 1.02)
        axes.set_xlabel("decoder layer (its output)")
        axes.set_ylabel("AUROC, topic against other text")
        axes.set_title("Separation of the topic by layer", fontsize=12, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(os.fspath(path), format="png")
        return Path(path)


@takes_options(ScoutConfig)
@as_guardrail_error()
def scout(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Iterable[Any],
    retain: Iterable[Any],
    saes: Sequence[SparseAutoencoder | str] = (),
    *,
    config: ScoutConfig | None = None,
    **options: Any,
) -> Scouting:
    """Measure how well each layer, and each SAE given, tells a topic from other text.

    One pass runs up to the last layer that is asked for. Guardrails on the model are disabled meanwhile.

    Args:
        model (nn.Module): A causal language model of transformers.
        tokenizer (PreTrainedTokenizerBase): The model's.
        forget (Iterable): Texts of the topic, or rows with a `text_column`; at least 8.
        retain (Iterable): Other texts; at least 8.
        saes (Sequence, *optional*, defaults to ()): SAEs, or names that `SparseAutoencoder.from_pretrained` takes.
        config (ScoutConfig, *optional*): The options; the defaults without one.
        options: Any field of `ScoutConfig` by its name, in place of its value in `config`.

    Returns:
        `Scouting`: Scores, the best one, and a picture.

    Raises:
        GuardrailError: If there are too few texts, no such layer, or an SAE does not belong to the model.
    """
    given = merged(ScoutConfig, config, options, UnlearnError)
    bare = bare_model(model)
    depth = len(find_decoder_layers(bare).layers)
    layers = list(range(depth)) if given.layers is None else sorted({*given.layers})
    check_all(layers, int, "layers", 1)
    check_integer("layers", layers[-1], 0, depth - 1)
    loaded = [sae_for(sae, bare) for sae in saes]
    places = [check_sae(sae, bare, None) for sae in loaded]
    rows = {role: _rows(corpus, tokenizer, role, given) for role, corpus in (("forget", forget), ("retain", retain))}
    pooled, medians = _pool(
        bare, tokenizer, rows["forget"] + rows["retain"], layers, list(zip(places, loaded, strict=True)), given
    )
    topic = torch.arange(len(rows["forget"]) + len(rows["retain"])) < len(rows["forget"])

    def headroom(place: int) -> float:
        shift = pooled[place][0][topic].mean(dim=0) - pooled[place][0][~topic].mean(dim=0)
        return round(CLAMP_SCALES["residual"] * float(medians[place]) / max(float(shift.norm()), 1e-30), 3)

    scores = []
    for layer in layers:
        whole, short = pooled[layer]
        scores.append(LayerScore(layer, None, *_crossed(whole, short, topic, _discriminant), headroom(layer)))
    for number, (place, sae) in enumerate(zip(places, loaded, strict=True)):
        whole, short = pooled[f"sae {number}"]
        name = saes[number] if isinstance(saes[number], str) else str(sae.source.get("id") or f"SAE {number}")
        scores.append(LayerScore(place, str(name), *_crossed(whole, short, topic, _evidence), headroom(place)))
    return Scouting(tuple(scores), (len(rows["forget"]), len(rows["retain"])))


def _rows(corpus: Iterable[Any], tokenizer: Any, role: str, config: ScoutConfig) -> list[list[int]]:
    rows = []
    for document in read_corpus(corpus, tokenizer, role, config.max_length, False, config.text_column):
        rows.append(document.rows[0])
        if len(rows) == config.max_rows:
            break
    if len(rows) < LEAST_TEXTS:
        raise UnlearnError(f"{role}: expected at least {LEAST_TEXTS} texts, got {len(rows)}. Give more.")
    return rows


def _pool(
    model: nn.Module,
    tokenizer: Any,
    rows: list[list[int]],
    layers: list[int],
    saes: list[tuple[int, SparseAutoencoder]],
    config: ScoutConfig,
) -> tuple[dict[int | str, tuple[Tensor, Tensor]], dict[int, Tensor]]:
    """Pooled rows and pooled beginnings, `[rows, width]` each, by layer and by `sae N`; median norms."""
    special = torch.tensor(special_token_ids(tokenizer, model.config))
    wanted = sorted({*layers, *(place for place, _ in saes)})
    found: dict[int | str, tuple[Tensor, Tensor]] = {}
    medians: dict[int, Tensor] = {}
    with _caught(model, wanted) as caught, tqdm(total=len(rows), unit="row", disable=not config.progress) as bar:
        for batch in unguarded_residuals(model, rows, wanted[-1], config.batch_size):
            caught[wanted[-1]] = batch.residual
            content = batch.kept.cpu() & ~torch.isin(batch.input_ids.cpu(), special)
            content[:, 0] = False  # its norm is far from the others', with BOS or without
            for layer in wanted:
                residual = caught[layer].float().cpu()
                norms = residual.norm(dim=-1)
                if layer not in medians:
                    medians[layer] = norms[content].median()
                usual = content & (norms <= OUTLIER_FACTOR * medians[layer])
                parts: list[tuple[int | str, Tensor]] = [(layer, residual)]
                parts += [(f"sae {i}", _active(sae, residual)) for i, (place, sae) in enumerate(saes) if place == layer]
                for name, values in parts:
                    if name not in found:
                        found[name] = tuple(torch.zeros(len(rows), values.shape[-1]) for _ in range(2))  # type: ignore[assignment]
                    for store, kept in zip(found[name], (usual, _beginning(usual)), strict=True):
                        weights = kept.float() / kept.sum(dim=1, keepdim=True).clamp(min=1)
                        store[batch.index] = torch.einsum("bt,btd->bd", weights, values)
            bar.update(len(batch.index))
    return found, medians


@torch.no_grad()
def _active(sae: SparseAutoencoder, residual: Tensor) -> Tensor:
    return (sae.encode(residual.to(sae.device)) > 0).float().cpu()


def _beginning(kept: Tensor) -> Tensor:
    return kept & (torch.arange(kept.shape[1]) < SHORT_TOKENS)


@contextmanager
def _caught(model: nn.Module, layers: list[int]) -> Iterator[dict[int, Tensor]]:
    """Inside, the outputs of these layers of the last forward pass."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[layer] = residual_of(module, output)

        return hook

    places = find_decoder_layers(model).layers
    handles = [places[layer].register_forward_hook(keep(layer)) for layer in layers[:-1]]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _crossed(whole: Tensor, short: Tensor, topic: Tensor, fit: Any) -> tuple[float, float]:
    """Return AUROC on whole and short rows, fitted on whole rows of one half and measured on the other."""
    found: list[list[float]] = [[], []]
    half = torch.arange(len(topic)) % 2 == 0
    for seen in (half, ~half):
        weights = fit(whole[seen], topic[seen])
        for values, rows in zip(found, (whole, short), strict=True):
            scores = rows[~seen].double() @ weights
            values.append(auc(scores[topic[~seen]], scores[~topic[~seen]]))
    rows_auc, short_auc = (sum(values) / len(values) for values in found)
    return round(rows_auc, 4), round(short_auc, 4)


def _discriminant(x: Tensor, topic: Tensor) -> Tensor:
    x = x.double()
    spread = (x[topic].var(dim=0) + x[~topic].var(dim=0)) / 2
    return (x[topic].mean(dim=0) - x[~topic].mean(dim=0)) / (spread + spread.mean() / 100)


def _evidence(rates: Tensor, topic: Tensor) -> Tensor:
    rates = rates.double()
    forget, retain = rates[topic].mean(dim=0), rates[~topic].mean(dim=0)
    least = 1 / (SHORT_TOKENS * len(topic))  # a feature that was never active on one side
    weights = ((forget + least) / (retain + least)).log().clamp(min=0)
    chosen = (weights * forget).topk(min(NUM_FEATURES, len(weights))).indices
    return torch.zeros_like(weights).index_copy(0, chosen, weights[chosen])
