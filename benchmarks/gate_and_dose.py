"""How the default threshold and dose of `fit_guardrail` were chosen: rules for both on topics that have been seen.

    python benchmarks/gate_and_dose.py run --data FOLDER --results FOLDER      # goes on where it was cut
    python benchmarks/gate_and_dose.py summary --results FOLDER

For each topic of `paragraphs.py` but the second fresh ones: the statistic of every row under 20 features chosen on half
of the rows to fit on, and the change of loss on held-out text at some doses, the residual stream below being kept.
A rule sets the threshold from a quarter of the rows of each side; a second quarter, and other text held out, say how
often the gate then fires, and the other way round. What other text loses by a false alarm is the mean over the dozen
rows on which the gate comes nearest to firing.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from default_preset import content_of, feature_sums
from paragraphs import FRESH_TOPICS, REPORT_TOPICS, VALIDATION_TOPICS, load_paragraph_topic
from tail import Kept, keep_residuals, tail_losses
from topics import data_folder
from torch import Tensor

from sae_unlearn import SAEGuardrailConfig
from sae_unlearn.backbone.corpus import special_token_ids
from sae_unlearn.console import table
from sae_unlearn.demo.model import load_demo_model
from sae_unlearn.demo.sae import load_demo_sae
from sae_unlearn.guardrail.calibration import between, percentile_threshold
from sae_unlearn.guardrail.dose import EditMoments, clamp_values
from sae_unlearn.guardrail.gate import row_statistic
from sae_unlearn.guardrail.selection import select_features


RESULTS = Path(__file__).parent / "results"
DOSES = (0.45, 0.6, 0.8)  # residual norms
RULES: dict[str, Callable[[Tensor, Tensor], float]] = {
    **{f"{p:g}th percentile": lambda forget, retain, p=p: percentile_threshold(retain, p) for p in (95.0, 97.5, 99.0)},
    **{
        f"{p:g}th, half way to the {name}": lambda forget, retain, p=p, q=q: _half(retain, p, forget, q)
        for p in (95.0, 97.5)
        for name, q in (("lower quartile", 25.0), ("median", 50.0))
    },
}
FORGET_ROWS, OTHER_ROWS = 16, 12  # whose change of loss is measured


def _half(retain: Tensor, percentile: float, forget: Tensor, quantile: float) -> float:
    low = percentile_threshold(retain, percentile)
    return between(low, torch.tensor([percentile_threshold(forget, quantile)]), 0.5)


@torch.no_grad()
def measure(model, tokenizer, sae, topic) -> dict[str, Any]:
    """Statistics of all rows and changes of loss of some, as plain data."""
    special = special_token_ids(tokenizer, model.config)
    texts = {"fit": topic.fit, "other_fit": topic.other_fit, "held_out": topic.held_out, "other": topic.other_held_out}
    kept = {
        part: [keep_residuals(model, tokenizer, [text], sae.layer)[0] for text in some] for part, some in texts.items()
    }
    forget = feature_sums(sae, [b for i, b in enumerate(kept["fit"]) if i % 4 in (0, 3)], special)
    other = feature_sums(sae, [b for i, b in enumerate(kept["other_fit"]) if i % 4 in (0, 2)], special)
    ids = select_features(forget, other, 20, 99.0, "mean_squared")
    part, mean_active = sae.slice(ids), forget.mean_active()[ids].float()
    config = SAEGuardrailConfig(layer=sae.layer, feature_ids=ids, min_tokens=8)

    def statistic(batch: Kept) -> float:
        content = content_of(batch, special)
        return float(row_statistic((part.encode(batch.residual) > 0).any(dim=-1) & content, content, config))

    found: dict[str, Any] = {"topic": topic.name}
    found["statistic"] = {name: [round(statistic(b), 4) for b in some] for name, some in kept.items()}
    moments, norms = EditMoments(part.W_dec, "fired"), []
    for batch in kept["fit"][2::4]:
        tokens = batch.residual[content_of(batch, special)]
        norms.append(tokens.norm(dim=-1))
        active = part.encode(tokens)
        moments.add(active[(active > 0).any(dim=-1)])
    median = float(torch.cat(norms).median())
    nearest = torch.tensor(found["statistic"]["other"]).argsort(descending=True)[:OTHER_ROWS].tolist()
    for name, rows in (("held_out", range(FORGET_ROWS)), ("other", nearest)):
        some = [kept[name][i] for i in rows]
        base = _losses(model, sae, some, None, special)
        for dose in DOSES:
            clamp = clamp_values("residual", dose, mean_active, moments, median, len(ids))

            def edit(batch: Kept, clamp: Tensor = clamp) -> Tensor:
                a = part.encode(batch.residual)
                where = (a > 0) & content_of(batch, special)[..., None]
                return batch.residual + torch.where(where, clamp - a, torch.zeros_like(a)) @ part.W_dec

            change = _losses(model, sae, some, edit, special) - base
            found[f"{name} change at {dose:g}"] = [round(v, 3) for v in change.tolist()]
    return found


def _losses(model, sae, batches: list[Kept], edit: Callable[[Kept], Tensor] | None, special: list[int]) -> Tensor:
    return torch.cat([tail_losses(model, sae.layer, [batch], edit, special) for batch in batches])


def summarise(folder: Path) -> None:
    """Print a table of rules and doses, and write it with all figures."""
    topics = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [["threshold", "dose", "fires on topic", "on other", "topic", "other", "topics with +2 and < 0.1"]]
    for name, rule in RULES.items():
        rates = [_rates(topic["statistic"], rule) for topic in topics]
        for dose in DOSES:
            changes = [
                [
                    rate * _mean(topic[f"{part} change at {dose:g}"])
                    for rate, part in zip(two, ("held_out", "other"), strict=True)
                ]
                for two, topic in zip(rates, topics, strict=True)
            ]
            both = sum(forget >= 2 and other < 0.1 for forget, other in changes)
            means = [_mean(column) for column in (*zip(*rates, strict=True), *zip(*changes, strict=True))]
            shown = [f"{means[0]:.2f}", f"{means[1]:.3f}", f"{means[2]:+.2f}", f"{means[3]:+.3f}"]
            rows.append([name, f"{dose:g}", *shown, f"{both} of {len(topics)}"])
    text = table(rows)
    print(text)
    (RESULTS / "gate_and_dose.txt").write_text(text + "\n")
    (RESULTS / "gate_and_dose.json").write_text(json.dumps(topics))


def _rates(statistic: dict[str, list[float]], rule: Callable[[Tensor, Tensor], float]) -> tuple[float, float]:
    """How often the gate fires on the topic and on other text, with rows that had no part in the threshold."""
    rows = {part: torch.tensor(values, dtype=torch.float64) for part, values in statistic.items()}
    found = []
    for mine, forget, others, retain in ((1, 2, 1, 3), (2, 1, 3, 1)):
        threshold = rule(rows["fit"][mine::4], rows["other_fit"][others::4])
        quiet = torch.cat([rows["other_fit"][retain::4], rows["other"]])
        found.append([(part > threshold).double().mean() for part in (rows["fit"][forget::4], quiet)])
    forget, other = torch.tensor(found).mean(dim=0).tolist()
    return forget, other


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
