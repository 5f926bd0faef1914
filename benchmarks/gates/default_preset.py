"""How the default settings of `fit_guardrail` were chosen, and what they do on topics they were not chosen on.

    python -m benchmarks.gates.default_preset tune   --data FOLDER --output tune.json      # validation topics
    python -m benchmarks.gates.default_preset report --data FOLDER --output report.json    # report topics, the defaults

`--texts questions` (the default) takes the topics of `topics.py`, `--texts paragraphs` those of `paragraphs.py`, and
`--texts fresh` and `--texts second` (reports only) the ones there that were written down after the other reports had
been seen. Model and SAE are the demo's. `tune` measures each setting's change of loss on held-out text with the stream
below the guarded layer kept; `report` fits with `fit_guardrail` as a user would and runs the guarded model.
"""

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.forget import topics
from benchmarks.forget.topics import data_folder
from benchmarks.gates import paragraphs
from benchmarks.gates.tail import Kept, keep_residuals, tail_losses
from sae_unlearn import SAEGuardrailConfig, SparseAutoencoder, fit_guardrail, record_firings
from sae_unlearn.backbone.tokens import special_token_ids
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.evaluation import bootstrap_interval, row_losses
from sae_unlearn.guardrail import StatisticKwargs, detach_guardrail
from sae_unlearn.guardrail.fit.calibration import percentile_threshold
from sae_unlearn.guardrail.fit.passes import FORGET_CYCLE, RETAIN_CYCLE
from sae_unlearn.guardrail.fit.selection import FeatureSums, select_features
from sae_unlearn.guardrail.gate.decision import row_statistic


TEXTS = {
    "questions": (topics.VALIDATION_TOPICS, topics.REPORT_TOPICS, topics.load_topic),
    "paragraphs": (paragraphs.VALIDATION_TOPICS, paragraphs.REPORT_TOPICS, paragraphs.load_paragraph_topic),
    "fresh": ((), paragraphs.FRESH_TOPICS, paragraphs.load_paragraph_topic),
    "second": ((), paragraphs.SECOND_TOPICS, paragraphs.load_paragraph_topic),
}
BASE = {
    "importance": "mean_squared",
    "ratio_percentile": 99.0,
    "num_features": 20,
    "clamp_mode": "fired",
    "clamp_scale": 16.0,
    "threshold_percentile": 99.0,
}
CHANGES = (
    {},
    {"clamp_scale": 5.0},
    {"clamp_scale": 10.0},
    {"clamp_scale": 12.0},
    {"clamp_scale": 20.0},
    {"clamp_mode": "all", "clamp_scale": 3.0},
    {"clamp_mode": "all", "clamp_scale": 5.0},
    {"ratio_percentile": 95.0},
    {"ratio_percentile": 99.5},
    {"importance": "squared_mean"},
    {"num_features": 40},
    {"num_features": 50},
    {"threshold_percentile": 95.0},
    {"threshold_percentile": 97.5},
    {"threshold_percentile": 95.0, "clamp_scale": 12.0},
    {"threshold_percentile": 97.5, "clamp_scale": 12.0},
)


def tune(texts, folder, model, tokenizer, sae) -> list[dict[str, Any]]:
    """The base setting and one change at a time, on the validation topics."""
    found = []
    special = special_token_ids(tokenizer, model.config)
    names, _, load = TEXTS[texts]
    for name in names:
        topic = load(folder, name, held_out=30)
        kept = {
            part: keep_residuals(model, tokenizer, texts, sae.layer)
            for part, texts in topic._asdict().items()
            if part != "name"
        }
        base = {
            part: tail_losses(model, sae.layer, kept[part], None, special) for part in ("held_out", "other_held_out")
        }
        # as much text for the features and for the threshold as `fit_guardrail` takes by default
        kept["fit"] = [b for i, b in enumerate(kept["fit"]) if FORGET_CYCLE[i % 4] == "select"]
        kept["other_features"] = [b for i, b in enumerate(kept["other_fit"]) if RETAIN_CYCLE[i % 4] == "select"]
        kept["other_threshold"] = [b for i, b in enumerate(kept["other_fit"]) if RETAIN_CYCLE[i % 4] == "threshold"]
        sums = {part: feature_sums(sae, kept[part], special) for part in ("fit", "other_features")}
        for change in CHANGES:
            setting = BASE | change
            row = {"topic": name} | setting | _one(model, sae, setting, kept, base, sums, special)
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def feature_sums(sae, batches: list[Kept], special: list[int]) -> FeatureSums:
    """The SAE's activations at content tokens, but for those of more than twice the median norm."""
    sums = FeatureSums(sae)
    norms = torch.cat([b.residual[content_of(b, special)].norm(dim=-1) for b in batches])
    for b in batches:
        tokens = b.residual[content_of(b, special)]
        sums.add(tokens[tokens.norm(dim=-1) <= 2 * norms.median()])
    return sums


def content_of(batch: Kept, special: list[int]) -> torch.Tensor:
    """`[rows, seq]` bool: neither padding nor special."""
    return batch.kept & ~torch.isin(batch.input_ids, torch.tensor(special))


def _one(model, sae, setting, kept, base, sums, special) -> dict[str, Any]:
    ids = select_features(
        sums["fit"],
        sums["other_features"],
        setting["num_features"],
        setting["ratio_percentile"],
        setting["importance"],
    )
    part, clamp = sae.slice(ids), -setting["clamp_scale"] * sums["fit"].mean_active()[ids].float()
    config = SAEGuardrailConfig(layer=sae.layer, feature_ids=ids, statistic_kwargs=StatisticKwargs(min_tokens=8))

    def hot(batch: Kept) -> torch.Tensor:
        return (part.encode(batch.residual) > 0).any(dim=-1) & content_of(batch, special)

    def statistics(batches: list[Kept]) -> torch.Tensor:
        return torch.cat([row_statistic(hot(b), content_of(b, special), config) for b in batches])

    def edit(batch: Kept) -> torch.Tensor:
        a = part.encode(batch.residual)
        where = (a > 0) if setting["clamp_mode"] == "fired" else torch.ones_like(a, dtype=torch.bool)
        where = where & hot(batch)[..., None]
        return batch.residual + torch.where(where, clamp - a, torch.zeros_like(a)) @ part.W_dec

    threshold = percentile_threshold(statistics(kept["other_threshold"]), setting["threshold_percentile"])
    found: dict[str, Any] = {"threshold": round(threshold, 3)}
    for name, title in (("held_out", "forget"), ("other_held_out", "other")):
        change = tail_losses(model, sae.layer, kept[name], edit, special) - base[name]
        fired = statistics(kept[name]) > threshold
        found |= {
            f"{title}_n": len(change),
            f"{title}_fired": round(fired.float().mean().item(), 3),
            f"{title}_static": round(change.mean().item(), 3),
            f"{title}_gated": round((change * fired).mean().item(), 3),
        }
    return found


def measure(texts, folder, model, tokenizer, sae, only=None) -> list[dict[str, Any]]:
    """The default settings on the report topics, as a user would run them.

    Rows on which the gate does not fire are not run again without the guardrail: the model's output is then
    the same bit for bit, as tests/guardrail show.
    """
    found = []
    _, names, load = TEXTS[texts]
    for name in [n for n in names if only in (None, n)]:
        topic = load(folder, name)
        start = time.perf_counter()
        guarded = fit_guardrail(model, tokenizer, sae, topic.fit, topic.other_fit, progress=False)
        row: dict[str, Any] = {"topic": name, "fit_rows": len(topic.fit), "other_fit_rows": len(topic.other_fit)}
        row["fit_seconds"] = round(time.perf_counter() - start, 1)
        config = guarded.peft_config["default"]
        row |= {"clamp_scale": config.calibration["dose"]["scale"], "threshold": round(config.threshold, 3)}
        measured = ("threshold_percentile", "edit_to_residual", "auroc", "warnings")
        row |= {key: config.calibration[key] for key in measured}
        held_out, losses, statistics = {"forget": topic.held_out, "other": topic.other_held_out}, {}, {}
        for part in held_out:
            # longest first, as `row_losses` batches them: so the firings come in this order
            held_out[part] = sorted(held_out[part], key=lambda text: -len(tokenizer(text)["input_ids"]))
            with record_firings(guarded) as firings:
                losses[part] = row_losses(guarded, tokenizer, held_out[part])
            statistics[part] = torch.tensor([f.statistic for f in firings])
        detach_guardrail(guarded)
        for part, values in losses.items():
            fired = statistics[part] > config.threshold
            base = values.clone()
            if fired.any():
                again = [text for text, on in zip(held_out[part], fired.tolist(), strict=True) if on]
                base[fired] = row_losses(model, tokenizer, again)
            row[part] = {"n": len(values), "base": round(base.mean().item(), 3)} | _changes(values - base, fired)
        print(json.dumps(row), flush=True)
        found.append(row)
    return found


def _changes(change: torch.Tensor, fired: torch.Tensor) -> dict[str, Any]:
    low, high = bootstrap_interval(change)
    return {
        "change": round(change.mean().item(), 3),
        "interval": [round(low, 3), round(high, 3)],
        "fired": int(fired.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "report"))
    parser.add_argument("--texts", choices=tuple(TEXTS), default="questions", help="which topics; default questions")
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--topic", help="only this one of the report topics")
    parser.add_argument("--sae", help="folder of another SAE of the demo's model; default the shipped one")
    args = parser.parse_args()
    folder = data_folder(args.data)
    model, tokenizer = load_demo_model()
    sae = SparseAutoencoder.from_pretrained(args.sae) if args.sae else load_demo_sae()
    if args.what == "tune":
        rows = tune(args.texts, folder, model, tokenizer, sae)
    else:
        rows = measure(args.texts, folder, model, tokenizer, sae, args.topic)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
