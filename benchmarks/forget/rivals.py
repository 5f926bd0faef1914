"""Ways of making a model forget what it was taught, on TOFU and LUME, at one damage budget, and three attacks on each.

    python -m benchmarks.forget.rivals_base tofu --data FOLDER --cache CACHE        # teaches the model
    python -m benchmarks.forget.rivals run --data FOLDER --cache CACHE --embedding-model E       # resumes
    python -m benchmarks.forget.rivals summary --cache CACHE [--write]              # writes benchmarks/results

`rivals_plan.md` fixes what is measured; cells lie in the cache, one file for each set and method. `E` is the folder of
the sentence encoder that `gates/text_gates.py` names. The page waits in `site_pages/waiting`: once a set is whole and
written, it goes to `templates/evidence` and gets a line in `mkdocs.yml` and in `site_pages/index.py`.
"""

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.forget.compare import write
from benchmarks.forget.rivals_base import load_taught
from benchmarks.forget.rivals_methods import METHODS, Applied, Arena, applied
from benchmarks.forget.rivals_sets import SETS, Contest, as_text, load_contest
from benchmarks.forget.setting import Setting, Size
from benchmarks.forget.table import RESULTS
from benchmarks.forget.topics import data_folder
from benchmarks.gates.text_gates import Embeddings, embedding_fit
from sae_unlearn.cli.inputs import load_model, load_sae
from sae_unlearn.evaluation import (
    Estimate,
    Fact,
    answer_likelihoods,
    option_likelihoods,
    recall,
    right_by_likelihood,
    rouge_l,
)
from sae_unlearn.evaluation.audit.attacks.dilution import diluted
from sae_unlearn.evaluation.audit.attacks.relearning import relearning_attack
from sae_unlearn.files.terminal import table


ANSWER_TOKENS, SHORT_TOKENS, AT_ONCE, SHOWN = 32, 12, 18, 4
GENERAL = ("real_authors", "world_facts")
FILLER_WORDS, RELEARNING_STEPS = 64, 12
ATTACKS = ("filler", "paraphrased", "relearned")
PARTS = ("forget", "retain", *GENERAL, *ATTACKS)
KEPT = 0.01
"""What general knowledge and MMLU may lose and count as kept."""


def setting_of(contest: Contest, model: nn.Module, tokenizer: Any, sae: Any) -> Setting:
    """The setting that guardrails are fitted in."""
    fit, other = ([as_text(row) for row in rows] for rows in (contest.forget, contest.keep))
    return Setting(model, tokenizer, sae, replace(contest.other, name=contest.name, fit=fit, other_fit=other), Size())


def asked(
    arena: Arena, model: nn.Module, facts: Sequence[Fact], prompt: str = "", tokens: int = ANSWER_TOKENS
) -> dict[str, Any]:
    """Greedy answers to questions: ROUGE-L recall, whether it begins rightly, and the right answer's probability."""
    tokenizer = arena.setting.tokenizer
    facts = [replace(fact, prompt=prompt + fact.prompt) for fact in facts]
    found = recall(model, tokenizer, facts, max_new_tokens=tokens, batch_size=AT_ONCE)
    likelihoods = answer_likelihoods(
        model, tokenizer, [fact.prompt for fact in facts], [fact.answers[0] for fact in facts]
    )
    return {
        "rouge": [round(value, 4) for value in rouge_l(found).recall.tolist()],
        "right": [one.right for one in found],
        "probability": [round(value, 5) for value in likelihoods.per_token.exp().tolist()],
        "said": [one.completion for one in found[:SHOWN]],
        "subjects": [fact.subject or str(i) for i, fact in enumerate(facts)],
    }


def measured(arena: Arena, both: Applied) -> dict[str, Any]:
    """What a method leaves of each set, and what the attacks bring back."""
    (model, prompt), contest = both, arena.contest
    found = {
        name: asked(arena, model, facts, prompt, SHORT_TOKENS if name in GENERAL else ANSWER_TOKENS)
        for name, facts in contest.asked.items()
    }
    choices = [replace(choice, question=prompt + choice.question) for choice in contest.other.other_choices]
    likelihoods = option_likelihoods(model, arena.setting.tokenizer, choices)
    found["mmlu"] = right_by_likelihood(choices, likelihoods, per_character=True).tolist()
    forget = contest.asked["forget"]
    filler = [
        replace(f, prompt=diluted(f.prompt, FILLER_WORDS, "before", seed=arena.setting.seed, index=i))
        for i, f in enumerate(forget)
    ]
    found["filler"] = asked(arena, model, filler, prompt)
    found["paraphrased"] = asked(arena, model, contest.paraphrased, prompt)
    found["relearned"] = relearning_attack(
        model,
        arena.setting.tokenizer,
        [replace(fact, prompt=prompt + fact.prompt) for fact in contest.relearned],
        lambda student: asked(arena, student, forget, prompt),
        steps=(RELEARNING_STEPS,),
        seed=arena.setting.seed,
    )[0].found
    return found


def run_set(arena: Arena, folder: Path, methods: Sequence[str] = METHODS) -> None:
    """The cells of a set that are not there yet."""
    for method in methods:
        path = folder / f"{method.replace(',', '').replace(' ', '_')}.json"
        if path.exists():
            continue
        with applied(arena, method) as (both, how):
            write(path, {"set": arena.contest.name, "method": method, **how, **measured(arena, both)})
        gc.collect()


def run(args: argparse.Namespace) -> None:
    """The sets that were taught."""
    torch.set_num_threads(1)
    embed = Embeddings(args.embedding_model, args.cache / "embeddings.pt")
    for name in args.sets:
        contest = load_contest(data_folder(args.data), name)
        model, tokenizer = load_model("demo")
        model = load_taught(args.cache / name, model)
        arena = Arena(contest, setting_of(contest, model, tokenizer, load_sae("demo", None)), embedding_fit(embed))
        run_set(arena, args.cache / "cells" / name, args.methods)


def estimate(part: dict[str, Any], measure: str) -> Estimate:
    """The mean of a measure over questions, with an interval by entity."""
    return Estimate.mean(torch.tensor(part[measure], dtype=torch.float64), subjects=part["subjects"])


def losses_of_utility(cell: dict[str, Any], base: dict[str, Any]) -> tuple[float, float]:
    """By how much general knowledge (ROUGE-L) and MMLU (share right) fall, against the base."""

    def general(of: dict[str, Any]) -> float:
        values = [value for name in GENERAL for value in of[name]["rouge"]]
        return sum(values) / len(values)

    share = [sum(of["mmlu"]) / len(of["mmlu"]) for of in (base, cell)]
    return general(base) - general(cell), share[0] - share[1]


def figures_of(cell: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a cell: means with intervals, and the first answers to the forget questions."""
    found = {
        part: {measure: estimate(cell[part], measure).to_dict() for measure in ("rouge", "probability")}
        for part in PARTS
    }
    mmlu = {"value": sum(cell["mmlu"]) / len(cell["mmlu"]), "n": len(cell["mmlu"])}
    general, choices = losses_of_utility(cell, base)
    return {
        "method": cell["method"],
        "strength": cell["chosen"]["strength"] if "chosen" in cell else None,
        "within": cell.get("within", True),
        "utility_kept": max(general, choices) <= KEPT + 1e-9,
        "utility_lost": {"general": general, "mmlu": choices},
        "mmlu": mmlu,
        "said": cell["forget"]["said"],
        **found,
    }


def summary_table(methods: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row for each method of a set: ROUGE-L recall, with the probability of the answer in brackets."""
    rows = [["method", "strength", *PARTS, "MMLU", "utility kept"]]
    for found in methods:
        strength = "" if found["strength"] is None else f"{found['strength']:g}{'' if found['within'] else ' (over)'}"
        shares = ["{:.2f} ({:.2f})".format(*(found[p][m]["value"] for m in ("rouge", "probability"))) for p in PARTS]
        kept = "yes" if found["utility_kept"] else "no"
        rows.append([found["method"], strength, *shares, f"{found['mmlu']['value']:.2f}", kept])
    return rows


def summarise(args: argparse.Namespace) -> None:
    """Print the tables, and write the sets of which every method was measured."""
    whole = {}
    for name in args.sets:
        cells = [json.loads(path.read_text()) for path in (args.cache / "cells" / name).glob("*.json")]
        cells.sort(key=lambda cell: METHODS.index(cell["method"]))
        if not cells or cells[0]["method"] != "base":
            continue
        methods = [figures_of(cell, cells[0]) for cell in cells]
        print(f"{name}\n\n{table(summary_table(methods))}\n")
        if [cell["method"] for cell in cells] == list(METHODS):
            taught = json.loads((args.cache / name / "epochs.json").read_text())
            whole[name] = {"taught_loss": taught, "methods": methods}
    if args.write and whole:
        (RESULTS / "rivals.json").write_text(json.dumps(whole, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running, summary = commands.add_parser("run"), commands.add_parser("summary")
    for command in (running, summary):
        command.add_argument("--cache", type=Path, required=True, help="folder of taught models and of cells")
        command.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    running.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    running.add_argument("--embedding-model", type=Path, required=True, help="folder of the sentence encoder")
    running.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    summary.add_argument("--write", action="store_true", help="also to benchmarks/results")
    args = parser.parse_args()
    (run if args.command == "run" else summarise)(args)


if __name__ == "__main__":
    main()
