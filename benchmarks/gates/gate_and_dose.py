"""How the default gate, threshold and dose of `fit_guardrail` were chosen, on topics that have been seen.

    python -m benchmarks.gates.gate_and_dose run --data FOLDER --results FOLDER      # goes on where it was cut
    python -m benchmarks.gates.gate_and_dose summary --results FOLDER

For each topic of `paragraphs.py` but the second fresh ones: the statistic of every row under each gate of `GATES`,
whose features are chosen on half of the rows to fit on, and the change of loss on held-out text at some doses, the
residual stream below being kept. A rule sets the threshold from a quarter of the rows of each side; a second quarter,
and other text held out, say how often the gate then fires, and the other way round. What other text loses by a false
alarm is the mean over the dozen rows on which the gate comes nearest to firing. So many `WORDS` of harmless text before
the held-out rows say how much of that is left when the topic is diluted; the thresholds know nothing of those rows.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.forget.topics import data_folder
from benchmarks.gates.default_preset import content_of, feature_sums
from benchmarks.gates.paragraphs import FRESH_TOPICS, REPORT_TOPICS, VALIDATION_TOPICS, load_paragraph_topic
from benchmarks.gates.tail import Kept, keep_residuals, tail_losses
from sae_unlearn import SAEGuardrailConfig
from sae_unlearn.backbone.tokens import special_token_ids
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.evaluation.audit.attacks.dilution import diluted
from sae_unlearn.files.terminal import table
from sae_unlearn.guardrail import StatisticKwargs, TokenRules
from sae_unlearn.guardrail.fit.calibration import between, percentile_threshold
from sae_unlearn.guardrail.fit.dose import EditMoments, clamp_values
from sae_unlearn.guardrail.fit.selection import log_ratios, select_features
from sae_unlearn.guardrail.gate.offline import read_batch
from sae_unlearn.guardrail.weights import EncoderRows, GuardrailEncoder
from sae_unlearn.options.fit import PRESETS


RESULTS = Path(__file__).parents[1] / "results"
DOSES = (0.5, 0.7)  # residual norms
GATES: dict[str, dict[str, Any]] = {
    "counted": {"num_features": 20},
    "weighed": {"num_features": 20, "evidence": "log_ratio"},
    "weighed, 40": {"num_features": 40, "evidence": "log_ratio"},
}
WORDS = 64
RULES: dict[str, Callable[[Tensor, Tensor], float]] = {
    f"{p:g}th percentile, margin {m:g}": lambda forget, retain, p=p, m=m: between(
        percentile_threshold(retain, p), forget, m
    )
    for p in (95.0, 97.5, 99.0)
    for m in (0.0, 0.25, 0.5)
}
SIDES = ("held_out", "other")
FORGET_ROWS, OTHER_ROWS = 16, 12  # whose change of loss is measured


@torch.no_grad()
def measure(model, tokenizer, sae, topic) -> dict[str, Any]:
    """Statistics of all rows and changes of loss of some, as plain data."""
    special = special_token_ids(tokenizer, model.config)
    texts = {"fit": topic.fit, "other_fit": topic.other_fit, "held_out": topic.held_out, "other": topic.other_held_out}
    kept = {
        part: [keep_residuals(model, tokenizer, [text], sae.layer)[0] for text in some] for part, some in texts.items()
    }
    for part in ("held_out", "other"):
        rows = [diluted(text, WORDS, "before", index=i) for i, text in enumerate(texts[part])]
        kept[f"{part}, diluted"] = [
            keep_residuals(model, tokenizer, [row], sae.layer, max_length=512)[0] for row in rows
        ]
    forget = feature_sums(sae, [b for i, b in enumerate(kept["fit"]) if i % 4 in (0, 3)], special)
    other = feature_sums(sae, [b for i, b in enumerate(kept["other_fit"]) if i % 4 in (0, 2)], special)
    found: dict[str, Any] = {"topic": topic.name, "statistic": {}, "change": {}}
    for gate, options in GATES.items():
        ids = select_features(forget, other, options["num_features"], 99.0, "mean_squared")
        part = sae.slice(ids)
        config = SAEGuardrailConfig(
            layer=sae.layer,
            feature_ids=ids,
            statistic_kwargs=StatisticKwargs(min_tokens=PRESETS[None]["min_tokens"]),
            tokens=TokenRules(special_ids=special),
            feature_evidence=log_ratios(forget, other, ids) if "evidence" in options else None,
            **{name: value for name, value in options.items() if name != "num_features"},
        )
        encoder = GuardrailEncoder.of(EncoderRows.of(part))
        found["statistic"][gate] = {
            name: [round(float(read_batch(b, encoder, config).statistics), 4) for b in some]
            for name, some in kept.items()
        }
        if str(len(ids)) not in found["change"]:
            nearest = torch.tensor(found["statistic"][gate]["other"]).argsort(descending=True)[:OTHER_ROWS].tolist()
            some = {"held_out": kept["held_out"][:FORGET_ROWS], "other": [kept["other"][i] for i in nearest]}
            mean_active = forget.mean_active()[ids].float()
            found["change"][str(len(ids))] = _changes(model, sae, part, mean_active, kept["fit"][2::4], some, special)
    return found


def _changes(model, sae, part, mean_active, measured, texts, special) -> dict[str, dict[str, list[float]]]:
    """Changes of loss of the texts at each dose, whose unit is measured on other rows of the topic."""
    moments, norms = EditMoments(part.W_dec, "fired"), []
    for batch in measured:
        tokens = batch.residual[content_of(batch, special)]
        norms.append(tokens.norm(dim=-1))
        active = part.encode(tokens)
        moments.add(active[(active > 0).any(dim=-1)])
    median = float(torch.cat(norms).median())
    found: dict[str, dict[str, list[float]]] = {}
    for name, some in texts.items():
        base = _losses(model, sae, some, None, special)
        for dose in DOSES:
            clamp = clamp_values("residual", dose, mean_active, moments, median, len(mean_active))

            def edit(batch: Kept, clamp: Tensor = clamp) -> Tensor:
                a = part.encode(batch.residual)
                where = (a > 0) & content_of(batch, special)[..., None]
                return batch.residual + torch.where(where, clamp - a, torch.zeros_like(a)) @ part.W_dec

            change = _losses(model, sae, some, edit, special) - base
            found.setdefault(f"{dose:g}", {})[name] = [round(v, 3) for v in change.tolist()]
    return found


def _losses(model, sae, batches: list[Kept], edit: Callable[[Kept], Tensor] | None, special: list[int]) -> Tensor:
    return torch.cat([tail_losses(model, sae.layer, [batch], edit, special) for batch in batches])


def summarise(folder: Path) -> None:
    """Print a table of rules and doses, and write it with all figures."""
    topics = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    diluted_title = f"topic, {WORDS} words before"
    rows = [["gate", "threshold", "dose", "fires on topic", diluted_title, "other", f"other, {WORDS} words before"]]
    rows[0] += ["topic", "other", "topics with +2 and < 0.1"]
    for gate, options in GATES.items():
        for name, rule in RULES.items():
            rates = [_rates(topic["statistic"][gate], rule) for topic in topics]
            for dose in DOSES:
                changes = [
                    [rate * _mean(_of(topic, options, dose)[part]) for rate, part in zip(r[:2], SIDES, strict=True)]
                    for r, topic in zip(rates, topics, strict=True)
                ]
                both = sum(forget >= 2 and other < 0.1 for forget, other in changes)
                means = [_mean(column) for column in (*zip(*rates, strict=True), *zip(*changes, strict=True))]
                shown = [f"{means[0]:.2f}", f"{means[2]:.2f}", f"{means[1]:.3f}", f"{means[3]:.3f}"]
                shown += [f"{means[4]:+.2f}", f"{means[5]:+.3f}"]
                rows.append([gate, name, f"{dose:g}", *shown, f"{both} of {len(topics)}"])
    text = table(rows)
    print(text)
    (RESULTS / "gate_and_dose.txt").write_text(text + "\n")
    (RESULTS / "gate_and_dose.json").write_text(json.dumps(topics))


def _of(topic: dict[str, Any], options: dict[str, Any], dose: float) -> dict[str, list[float]]:
    """Changes of loss with so many features, or as many as there were."""
    numbers = sorted(topic["change"], key=int)
    number = next((n for n in numbers if int(n) == options["num_features"]), numbers[-1])
    return topic["change"][number][f"{dose:g}"]


def _rates(statistic: dict[str, list[float]], rule: Callable[[Tensor, Tensor], float]) -> tuple[float, ...]:
    """How often the gate fires on the topic and on other text, with rows that had no part in the threshold, and on both
    when they are diluted."""
    rows = {part: torch.tensor(values, dtype=torch.float64) for part, values in statistic.items()}
    found = []
    for mine, forget, others, retain in ((1, 2, 1, 3), (2, 1, 3, 1)):
        threshold = rule(rows["fit"][mine::4], rows["other_fit"][others::4])
        quiet = torch.cat([rows["other_fit"][retain::4], rows["other"]])
        judged = (rows["fit"][forget::4], quiet, rows["held_out, diluted"], rows["other, diluted"])
        found.append([(part > threshold).double().mean() for part in judged])
    return tuple(torch.tensor(found).mean(dim=0).tolist())


def _mean(values: Any) -> float:
    return float(torch.tensor(list(values)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "summary"))
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--results", type=Path, required=True, help="folder of one file per topic")
    args = parser.parse_args()
    if args.what == "summary":
        summarise(args.results)
        return
    folder = data_folder(args.data)
    args.results.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_demo_model()
    sae = load_demo_sae()
    for name in (*VALIDATION_TOPICS, *REPORT_TOPICS, *FRESH_TOPICS):
        path = args.results / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(model, tokenizer, sae, load_paragraph_topic(folder, name))))
            print(path, flush=True)


if __name__ == "__main__":
    main()
