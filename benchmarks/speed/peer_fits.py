"""Fits for `peers.py`: what the guardrail and its peers do once over the same rows of the same length.

Every arm works on its own twin of the model, in batches of the same rows. LoRA takes one step on one batch; its time
is multiplied by the number of batches.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.speed.models import load_with_sae, twin, with_lora
from benchmarks.speed.peer_arms import in_repsteer, missing_for, module_of, saelens_sae
from sae_unlearn import fit_guardrail
from sae_unlearn.backbone.layers import text_config
from sae_unlearn.backbone.residual_stream import truncated
from sae_unlearn.guardrail.fit import steps
from sae_unlearn.guardrail.fit.passes import DOSE_DOCUMENTS


AUTHORS_STATISTICS = "get_feature_activation_sparsity"


class Fits:
    """The arms on one corpus.

    Attributes:
        calls: Arms by name.
        left_out: Reasons of the arms that are missing.
        regressions: Seconds of each fit's regressions, thresholds included.
        batches: Number of batches of both corpora.
    """

    def __init__(
        self, name: str, rows: int, length: int, batch: int, d_sae: int, authors_statistics: Path | None
    ) -> None:
        self.model, self.sae, self.layer = load_with_sae(name, d_sae, threshold=2.0)
        self.sides = corpus(name, text_config(self.model).vocab_size, rows, length)
        self.batch, self.batches = batch, -(-rows // batch) * 2
        self.regressions: list[float] = []
        self.calls: dict[str, Callable[[], Any]] = {
            "truncated": lambda: self._truncated(dose=False),
            "truncated, dose": lambda: self._truncated(dose=True),
            "fit": self._fit,
        }
        self.left_out: dict[str, str] = {}
        peers = {"authors' statistics": self._authors, "repsteer DiffMean": self._repsteer}
        for peer, make in peers.items():
            missing = missing_for(peer, authors_statistics)
            if missing:
                self.left_out[peer] = missing
            else:
                self.calls[peer] = make(authors_statistics)
        self.calls["LoRA"] = self._lora()

    @torch.no_grad()
    def _truncated(self, dose: bool) -> None:
        sides = [*self.sides.values(), *([self.sides["forget"][:DOSE_DOCUMENTS]] if dose else [])]
        for ids in sides:
            for some in ids.split(self.batch):
                residual_of(self.model, self.layer, some)

    def _fit(self) -> None:
        given = {side: [{"input_ids": row[None]} for row in ids] for side, ids in self.sides.items()}
        with warnings.catch_warnings(), seconds_of(steps, "fitted_gate") as spent:
            warnings.simplefilter("ignore")
            fit_guardrail(
                twin(self.model), None, self.sae, **given, layer=self.layer, batch_size=self.batch, progress=False
            )
        self.regressions.append(sum(spent))

    def _authors(self, file: Path | None) -> Callable[[], None]:
        import jaxtyping

        assert file is not None
        jaxtyping.config.update("jaxtyping_disable", True)  # their annotation of the result is not what they return
        statistics, theirs = getattr(module_of(file), AUTHORS_STATISTICS), saelens_sae(self.sae)
        stand_in, hook = StandIn(self.model, self.layer), f"blocks.{self.layer}.hook_resid_post"

        def call() -> None:
            for ids in self.sides.values():
                statistics(ids, stand_in, theirs, self.batch, self.layer, hook)

        return call

    def _repsteer(self, _: Path | None) -> Callable[[], None]:
        import repsteer as rs

        tokenizer = number_tokenizer(text_config(self.model).vocab_size)
        wrapped = in_repsteer(twin(self.model), tokenizer)
        texts = [[" ".join(map(str, row)) for row in ids.tolist()] for ids in self.sides.values()]
        learner = rs.learners.DiffMean(
            site=rs.sites.resid_post(self.layer),
            positions=rs.positions.PromptTokens(),
            pooling="mean",
            batch_size=self.batch,
        )
        return lambda: learner.fit(wrapped, rs.data.ContrastivePairs.from_groups(*texts))

    def _lora(self) -> Callable[[], None]:
        model = with_lora(self.model).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        ids = self.sides["forget"][: self.batch]

        def call() -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return call


def corpus(name: str, vocabulary: int, rows: int, length: int) -> dict[str, Tensor]:
    """Return token ids `[rows, length]` of both sides: the demo's texts, or for other models random tokens."""
    if name == "demo":
        from sae_unlearn.demo.model import load_demo_model
        from sae_unlearn.demo.texts import load_demo_texts

        tokenizer, texts = load_demo_model()[1], load_demo_texts()
        return {
            side: torch.tensor([row[:length] for row in tokenizer(getattr(texts, side)[:rows])["input_ids"]])
            for side in ("forget", "retain")
        }
    generator = torch.Generator().manual_seed(0)
    ranges = {"forget": (3, vocabulary // 8), "retain": (vocabulary // 8, vocabulary)}
    return {side: torch.randint(*ends, (rows, length), generator=generator) for side, ends in ranges.items()}


def residual_of(model: nn.Module, layer: int, ids: Tensor) -> Tensor:
    """Return the residual stream after a layer, `[batch, seq, d_in]`, from a pass that ends there."""
    with truncated(model, layer):
        residual: Tensor = model(input_ids=ids, use_cache=False)
    return residual


class StandIn:
    """The one method of TransformerLens' model that the authors' statistics call.

    Its pass is the bare truncated one, so that what they add to it is their own.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        self._model, self._layer = model, layer

    def run_with_cache(self, ids: Tensor, names_filter: str, **_: Any) -> tuple[None, dict[str, Tensor]]:
        return None, {names_filter: residual_of(self._model, self._layer, ids)}


def number_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer whose tokens are the numbers of the vocabulary, separated by blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", unk_token="0")


@contextmanager
def seconds_of(module: Any, name: str) -> Iterator[list[float]]:
    """Collect the seconds of each call of a module's function."""
    spent: list[float] = []
    function = getattr(module, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)

    with patch.object(module, name, timed):
        yield spent
