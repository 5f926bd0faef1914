"""Interpretability: the selected features are about the topic, as the texts they are most active on show."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.claims.claim import Claim, Verdict, Work, holds
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.fitting import fitted
from benchmarks.forget.setting import Setting
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.backbone.tokens import special_token_ids
from sae_unlearn.guardrail.fit.selection import OUTLIER_FACTOR


TOP, SHOWN, AROUND = 10, 3, 8
ON_TOPIC = 0.8
RULE = (
    f"the median feature has at least {ON_TOPIC:g} of the {TOP} texts it is most active on from the topic, of as many "
    "texts of the topic as other ones that had no part in the fit, and random features have less"
)


@torch.no_grad()
def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """The features of the default settings, and as many random ones, with the texts they are most active on."""
    texts = setting.texts
    sides = ([*texts.test, *texts.validation], [*texts.other_test, *texts.other_validation])
    n = min(map(len, sides))
    some = [*sides[0][:n], *sides[1][:n]]
    with cached_front(setting.model, setting.layer, work.front):
        with fitted(setting, {}) as guarded:
            config = guarded.peft_config["default"]
            ids, largest = config.feature_ids, OUTLIER_FACTOR * config.calibration["residual_norm_median"]
        drawn = torch.randperm(setting.sae.d_sae, generator=torch.Generator().manual_seed(0)).tolist()
        drawn = [feature for feature in drawn if feature not in ids][: len(ids)]
        rows = [setting.tokenizer(t, truncation=True, max_length=setting.size.max_length)["input_ids"] for t in some]
        special = torch.tensor(special_token_ids(setting.tokenizer, setting.model.config))
        part = setting.sae.slice([*ids, *drawn])
        peak, place = torch.zeros(len(rows), len(part.W_dec)), torch.zeros(len(rows), len(part.W_dec), dtype=torch.long)
        for batch in residual_batches(setting.model, rows, setting.layer, 8):
            content = batch.kept & ~torch.isin(batch.input_ids, special.to(batch.input_ids.device))
            content &= (
                batch.residual.float().norm(dim=-1) <= largest
            )  # as in a fit: outliers, such as a row's first token
            highest = part.encode(batch.residual).where(content[..., None], 0).max(dim=1)
            peak[batch.index], place[batch.index] = highest.values.float().cpu(), highest.indices.cpu()
    features = [_feature(setting, rows, n, f, peak[:, i], place[:, i]) for i, f in enumerate([*ids, *drawn])]
    return {"selected": features[: len(ids)], "random": features[len(ids) :], "texts": len(some)}


def _feature(
    setting: Setting, rows: list[list[int]], on_topic: int, feature: int, peak: torch.Tensor, place: torch.Tensor
) -> dict[str, Any]:
    """A feature with the share of its top texts that are of the topic (the first `on_topic` ones), and some of them."""
    top = [i for i in peak.argsort(descending=True)[:TOP].tolist() if peak[i] > 0]
    share = sum(i < on_topic for i in top) / len(top) if top else None
    shown = [_context(setting, rows[i], int(place[i])) for i in top[:SHOWN]]
    return {"feature": feature, "active on": len(top), "of the topic": share, "contexts": shown}


def _context(setting: Setting, row: list[int], place: int) -> str:
    """The words around a token, which stands in double brackets."""
    decode = setting.tokenizer.decode
    before, after = decode(row[max(0, place - AROUND) : place]), decode(row[place + 1 : place + 1 + AROUND])
    return f"{before}[[{decode(row[place : place + 1])}]]{after}"


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`, over the features of all topics that are active at all."""
    shares = {
        kind: [f["of the topic"] for topic in found for f in topic[kind] if f["of the topic"] is not None]
        for kind in ("selected", "random")
    }
    middle = {kind: median(values) if values else 0.0 for kind, values in shares.items()}
    figure = f"median {middle['selected']:.2f} of {len(shares['selected'])} features, random {middle['random']:.2f}"
    return holds(middle["selected"] >= ON_TOPIC and middle["selected"] > middle["random"], figure)


CLAIM = Claim("interpretability", RULE, measure, judge)
