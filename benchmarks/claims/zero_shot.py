"""Zero-shot features: no text at all, features by what they mean and a threshold by hand.

The paper takes the features from the labels of a public page of the SAE. The demo's SAE has no such page, so a feature
means here what its decoder row promotes at the output (the "logit lens"): features are ranked by how far the logits of
the words below stand above those of other words, in standard deviations. The threshold is one of the paper's, and the
dose is given in norms of the residual stream on harmless text.
"""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.claims.claim import DEFAULT_DOSE, Claim, Verdict, Work, figures_on_test, holds, outcome, pooled, within
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.choice import BUDGET
from benchmarks.forget.setting import Setting
from sae_unlearn import fit_guardrail
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER
from sae_unlearn.guardrail import detach_guardrail


WORDS = {
    "nutrition": "nutrition diet vitamin protein calories fat food obesity",
    "world_religions": "religion Buddhism Islam Hindu Jewish Christian prayer god",
    "astronomy": "planet star galaxy orbit telescope moon solar sun",
    "high_school_psychology": "psychology memory behavior emotion cognitive anxiety therapy brain",
    "high_school_us_history": "president colonies slavery Congress constitution treaty senator reform",
    "marketing": "marketing brand customers advertising price market product sales",
}
THRESHOLD, FEATURES, SAMPLE = 0.2, 20, 8192
ENOUGH = 0.5
RULE = (
    f"features chosen without text forget at least {ENOUGH:g} of what the fitted guardrail forgets, and other text "
    f"loses at most {BUDGET:g}"
)


def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """A guardrail without any text, beside the fitted one, on the test texts."""
    words = WORDS.get(setting.texts.name, setting.texts.name.replace("_", " ")).split()
    ids = features_of(setting, words)
    with cached_front(setting.model, setting.layer, work.front):
        norms = torch.cat(
            [
                batch.residual[batch.kept].norm(dim=-1)
                for batch in residual_batches(
                    setting.model, setting.tokenizer(list(FILLER))["input_ids"], setting.layer, 8
                )
            ]
        )
        dose = DEFAULT_DOSE * float(norms.median() / setting.sae.slice(ids).W_dec.norm(dim=-1).mean())
        guarded = fit_guardrail(
            setting.model,
            setting.tokenizer,
            setting.sae,
            features=ids,
            threshold=THRESHOLD,
            clamp_value=-dose,
            progress=False,
        )
        try:
            found = {"zero-shot": figures_on_test(setting, guarded, work.base)}
        finally:
            detach_guardrail(guarded)
        return found | {"fitted": outcome(setting, work.base, {}), "features": ids, "words": words, "clamp": -dose}


@torch.no_grad()
def features_of(setting: Setting, words: Sequence[str], number: int = FEATURES) -> list[int]:
    """The features whose decoder rows promote the words most, the first one most of all."""
    wanted = sorted({setting.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words})
    unembedding = setting.model.get_output_embeddings().weight.float()
    sample = torch.randperm(len(unembedding), generator=torch.Generator().manual_seed(0))[:SAMPLE]
    norm = getattr(find_decoder_layers(setting.model).backbone, "norm", None)
    rows = setting.sae.slice(list(range(setting.sae.d_sae))).W_dec
    rows = rows if norm is None else norm(rows)
    others = rows @ unembedding[sample].T
    height = ((rows @ unembedding[wanted].T).mean(dim=1) - others.mean(dim=1)) / others.std(dim=1)
    return height.argsort(descending=True)[:number].tolist()


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`, over the texts of all topics."""
    shot, fitted = [topic["zero-shot"] for topic in found], [topic["fitted"] for topic in found]
    fitted = [one for one in fitted if "refused" not in one]
    mine, other = pooled(shot, "test"), pooled(shot, "other_test")
    theirs = pooled(fitted, "test").value if fitted else 0.0
    figure = f"topic {mine.value:+.2f} against {theirs:+.2f} fitted; other text {other.value:+.3f}"
    return holds(within(shot) and mine.low > 0 and mine.value >= ENOUGH * theirs, figure)


CLAIM = Claim("zero-shot features", RULE, measure, judge)
