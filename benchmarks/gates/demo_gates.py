"""What other gates would make of the questions that `demo_audit.py` puts in other forms.

    python -m benchmarks.gates.demo_gates [--write]

On the demo's paragraphs gates are fitted that count hot tokens (`evidence="any"`, with 20 features), with the default
settings, and with signed weights on windows; each with several margins (`between` of
`guardrail/fit/calibration.py`), of which 0 is a percentile of other paragraphs. The gate alone is measured, on the
layers up to the guarded one: whether it fires on the demo's facts, on the topic and on other things, alone and in each
form, and on the paragraphs that the fit held out. None of these options was chosen on these questions.
"""

import argparse
import json
from typing import Any

import torch

from benchmarks.forget.table import RESULTS
from sae_unlearn import detach_guardrail, fit_guardrail
from sae_unlearn.cli.inputs import load_model, load_sae
from sae_unlearn.demo.texts import SIDES, load_demo_texts
from sae_unlearn.evaluation import Estimate
from sae_unlearn.evaluation.audit.attacks.dilution import diluted
from sae_unlearn.evaluation.audit.attacks.rephrasing import TEMPLATES, rephrased
from sae_unlearn.evaluation.audit.attacks.wrappers import WRAPPERS
from sae_unlearn.evaluation.explorer.texts import the_guardrail
from sae_unlearn.files.terminal import table
from sae_unlearn.guardrail.gate.offline import read_batch, unguarded_residuals


GATES: dict[str, dict[str, Any]] = {
    "counted": {"evidence": "any", "num_features": 20},
    "default": {},
    "windowed": {"statistic": "windowed"},
}
MARGINS = (0.0, 0.25, 0.5)
WORDS = (4, 8, 16, 64, 256)
BATCH = 8


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
    parser.add_argument("--write", action="store_true", help="also to benchmarks/results")
    args = parser.parse_args()
    (model, tokenizer), sae, texts = load_model("demo"), load_sae("demo"), load_demo_texts()
    configs, encoders = {}, {}
    for gate, options in GATES.items():
        guarded = fit_guardrail(model, tokenizer, sae, texts.forget, texts.retain, margin=max(MARGINS), **options)
        name, layer = the_guardrail(guarded, None)
        configs[gate], encoders[gate], _ = layer.guardrail(name)
        detach_guardrail(guarded)

    @torch.no_grad()
    def statistics(prompts: list[str]) -> dict[str, list[float]]:
        rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        found = {gate: torch.zeros(len(prompts)) for gate in GATES}
        for batch in unguarded_residuals(model, rows, configs["default"].layer, BATCH):
            for gate, values in found.items():
                values[batch.index] = read_batch(batch, encoders[gate], configs[gate]).statistics
        return {gate: values.tolist() for gate, values in found.items()}

    held_out = {side: {gate: configs[gate].calibration[f"statistic_{side}"] for gate in GATES} for side in SIDES}
    seen = {"held-out paragraphs": held_out}
    asked = {side: forms([fact.prompt for fact in texts.facts[side]]) for side in SIDES}
    for form in asked[SIDES[0]]:
        seen[form] = {side: statistics(asked[side][form]) for side in SIDES}
    taus = {gate: thresholds(config) for gate, config in configs.items()}
    text = "\n\n".join(
        f"{title}\n\n{told(seen, taus, side)}" for side, title in zip(SIDES, ("topic", "other"), strict=True)
    )
    print(text)
    if args.write:
        (RESULTS / "demo_gates.txt").write_text(text + "\n")
        (RESULTS / "demo_gates.json").write_text(json.dumps({"thresholds": taus, "statistics": seen}) + "\n")


def thresholds(config: Any) -> dict[float, float]:
    """The threshold at each of `MARGINS`."""
    percentile, usual = (config.calibration[f"threshold_{name}"] for name in ("percentile", "margin"))
    low = next(point["threshold"] for point in config.calibration["curve"] if point["percentile"] == percentile)
    return {margin: low + margin / usual * (config.tau - low) for margin in MARGINS}


def told(seen: dict[str, Any], taus: dict[str, dict[float, float]], side: str) -> str:
    """On which share of a side's rows each gate fires, as a table."""
    columns = [(gate, margin) for gate in GATES for margin in MARGINS]
    lines = [["", "n", *(f"{gate}, margin {margin:g} ({taus[gate][margin]:.2f})" for gate, margin in columns)]]
    for form, by_side in seen.items():
        found = by_side[side]
        shares = [Estimate.share([v > taus[gate][margin] for v in found[gate]]) for gate, margin in columns]
        rates = (f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]" for share in shares)
        lines.append([form, str(len(found["default"])), *rates])
    return table(lines)


if __name__ == "__main__":
    main()
