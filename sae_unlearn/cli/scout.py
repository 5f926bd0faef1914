"""`sae-unlearn scout`."""

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path

from sae_unlearn.cli.arguments import Parser, add_model_arguments, add_options, options_from
from sae_unlearn.cli.data_sets import TEXTS, add_text_arguments
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.scout import ScoutConfig


HELP = "measure which layer, or which SAE, tells a topic from other text"
EXAMPLES = f"""examples:
  sae-unlearn scout --model google/gemma-2-2b --forget topic.txt --retain other.txt --picture layers.png
  sae-unlearn scout --model demo --forget topic.txt --retain other.txt --saes demo my-sae

without --saes every layer is measured by a raw probe, which is what an SAE of that layer can reach at best

{TEXTS}"""


HOPELESS = (
    "No layer tells the topic from the other text, so no guardrail can. Give texts of the topic that differ more from "
    "the other text, or more of both."
)


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    parser.group("SAE").add_argument("--saes", nargs="+", metavar="SAE", default=[], help="SAEs to measure, as for fit")
    add_text_arguments(parser, forget="texts of the topic", retain="other texts, with near neighbors of the topic")
    add_options(parser, ScoutConfig)
    output = parser.group("output")
    output.add_argument("--picture", metavar="FILE", help="draw AUROC over layers, as a PNG")
    output.add_argument("--scores", metavar="FILE", help="write the scores")


def run(args: argparse.Namespace) -> int:
    import warnings

    from sae_unlearn.cli.data_sets import check_differ, held_texts, texts_of
    from sae_unlearn.cli.inputs import load_model, load_sae
    from sae_unlearn.cli.outputs import new_file, picture_file
    from sae_unlearn.files.terminal import table
    from sae_unlearn.guardrail.fit.layer_scores import scout
    from sae_unlearn.guardrail.tuning.verdict import FAIR
    from sae_unlearn.sae.directory.lookup import published_saes, suggested_sae

    config = options_from(args, ScoutConfig, progress=args.progress)
    forget, retain = texts_of(args, "forget"), texts_of(args, "retain")
    if forget is None or retain is None:
        raise UnlearnError("--forget and --retain are both needed; give texts of the topic and other texts.")
    if args.picture:
        picture_file(args.picture)
    if args.scores:
        new_file(args.scores, "--scores")
    saes = [load_sae(name, model=args.model) for name in args.saes]
    check_differ(held_texts(forget, config.text_column), held_texts(retain, config.text_column))
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    found = scout(model, tokenizer, forget, retain, saes, config=config)
    names = ["raw probe"] * (len(found.scores) - len(args.saes)) + args.saes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published = published_saes(args.model)
    counts = {layer: sum(entry.layer == layer for entry in published) for layer in {e.layer for e in published}}
    rows = [["measured", "layer", "AUROC, rows", "AUROC, short text", "headroom", "published SAEs"]]
    for name, score in zip(names, found.scores, strict=True):
        row = [name, str(score.layer), f"{score.auroc:.3f}", f"{score.auroc_short:.3f}", f"{score.headroom:.1f}"]
        rows.append([*row, str(counts.get(score.layer, 0))])
    print(f"{found.rows[0]} texts of the topic, {found.rows[1]} others\n\n{table(rows)}")
    best = found.best
    print("\nHeadroom: the usual dose's edit in units of the topic's own shift of the layer's output.")
    print(f"Best: layer {best.layer}, AUROC {best.auroc:.3f} on rows and {best.auroc_short:.3f} on short text.")
    if args.picture:
        print(f"Picture: {found.plot(args.picture)}")
    if args.scores:
        Path(args.scores).write_text(json.dumps([asdict(score) for score in found.scores], indent=1), encoding="utf-8")
    probe = max((score for score in found.scores if score.sae is None), key=lambda score: score.auroc)
    told = best.auroc >= FAIR
    if not told and probe.auroc < FAIR:
        print(HOPELESS)
        return 0
    if not told:
        print(f"None of these SAEs tells the topic; layer {probe.layer} does, so take another SAE of it.")
    args.best = best.layer if told else probe.layer
    near = suggested_sae([entry for entry in published if entry.layer == args.best], args.best)
    args.near, args.approximate = (None, False) if near is None else (near.name, near.approximate)
    if args.saes and told:
        args.near = names[found.scores.index(best)]
        args.approximate = not saes[args.saes.index(args.near)].exact_in_slices
    return 0


def next_step(args: argparse.Namespace) -> str:
    """The command to run after this one."""
    if not hasattr(args, "best"):
        return ""
    if args.near is None:
        given = ["sae-unlearn", "train-sae", "--model", args.model, "--layer", str(args.best)]
        return shlex.join([*given, "--texts", *args.forget, *args.retain, "--output", "SAE"])
    texts = ["--forget", *args.forget, "--retain", *args.retain]
    sae = ["--sae", args.near, *(["--topk", "threshold"] if args.approximate else [])]
    return shlex.join(["sae-unlearn", "fit", "--model", args.model, *sae, *texts, "--output", "FOLDER"])
