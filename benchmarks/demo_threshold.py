"""What a lower threshold of the demo's guardrail would catch of the questions that `demo_audit.py` puts in other forms.

    sae-unlearn demo --output DEMO
    python benchmarks/demo_threshold.py --adapter DEMO/forget-biology [--write]

The threshold is `low + margin * (quartile - low)`, see `between` in `guardrail/calibration.py`; `low` is a percentile
of other paragraphs. A margin keeps away from other text, and lets through what is diluted. The gate alone is measured,
on the layers up to the guarded one: whether it fires on the demo's facts, on the topic and on other things, alone and
in each form, and on the paragraphs that the fit held out. The default margin was not chosen on these questions.
"""

import argparse
import json

import torch
from guardrail_table import RESULTS

from sae_unlearn import attach_guardrail
from sae_unlearn.commands.loading import load_model
from sae_unlearn.console import table
from sae_unlearn.demo.corpora import SIDES, load_demo_texts
from sae_unlearn.evaluation import Estimate
from sae_unlearn.evaluation.attacks.dilution import diluted
from sae_unlearn.evaluation.attacks.rephrasing import TEMPLATES, rephrased
from sae_unlearn.evaluation.attacks.wrappers import WRAPPERS
from sae_unlearn.evaluation.the_guardrail import the_guardrail
from sae_unlearn.guardrail.attach import bare_model
from sae_unlearn.guardrail.reading import read_batch
from sae_unlearn.guardrail.unguarded import unguarded_residuals


MARGINS = (0.0, 0.25, 0.5)
WORDS = (4, 8, 16, 64)
BATCH = 16


def forms(prompts: list[str]) -> dict[str, list[str]]:
    """The prompts alone and in every form, by its name."""
    found = {"alone": prompts}
    for words in WORDS:
        found[f"{words} words before"] = [diluted(p, words, "before", index=i) for i, p in enumerate(prompts)]
    for name, template in (TEMPLATES | WRAPPERS).items():
        if "{prompt}" in template:
            found[name] = [rephrased(prompt, template) for prompt in prompts]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="what the demo fitted")
    parser.add_argument("--write", action="store_true", help="also to benchmarks/results")
    args = parser.parse_args()
    model, tokenizer = load_model("demo")
    name, layer = the_guardrail(attach_guardrail(model, args.adapter), None)
    config, encoder = layer.guard_config[name], layer.sae_guardrail_encoder[name]

    def statistics(prompts: list[str]) -> list[float]:
        rows, found = [tokenizer(prompt)["input_ids"] for prompt in prompts], torch.zeros(len(prompts))
        with torch.no_grad():
            for batch in unguarded_residuals(bare_model(model), rows, config.layer, BATCH):
                found[batch.index] = read_batch(batch, encoder, config).statistics
        return found.tolist()

    facts, calibration = load_demo_texts().facts, config.calibration
    seen = {"held-out paragraphs": {side: calibration[f"statistic_{side}"] for side in SIDES}}
    asked = {side: forms([fact.prompt for fact in facts[side]]) for side in SIDES}
    for form in asked[SIDES[0]]:
        seen[form] = {side: statistics(asked[side][form]) for side in SIDES}

    percentile, usual = calibration["threshold_percentile"], calibration["threshold_margin"]
    low = next(point["threshold"] for point in calibration["curve"] if point["percentile"] == percentile)
    taus = {margin: low + margin / usual * (config.tau - low) for margin in MARGINS}
    heads = [f"{side}, margin {margin:g} ({taus[margin]:.2f})" for side in ("topic", "other") for margin in MARGINS]
    lines = [["", "n", *heads]]
    for form, by_side in seen.items():
        shares = [Estimate.share([v > taus[m] for v in by_side[side]]) for side in SIDES for m in MARGINS]
        counts = "/".join(str(len(by_side[side])) for side in SIDES)
        lines.append([form, counts, *(f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]" for share in shares)])
    print(table(lines))
    if args.write:
        (RESULTS / "demo_threshold.txt").write_text(table(lines) + "\n")
        (RESULTS / "demo_threshold.json").write_text(json.dumps({"thresholds": taus, "statistics": seen}) + "\n")


if __name__ == "__main__":
    main()
