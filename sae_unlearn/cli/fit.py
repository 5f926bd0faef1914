"""The command `sae-unlearn fit`: arguments and run."""

import argparse
import os
from pathlib import Path
from typing import Any

from sae_unlearn.cli.arguments import (
    Parser,
    add_model_arguments,
    add_options,
    add_output_argument,
    add_sae_arguments,
    options_from,
)
from sae_unlearn.cli.data_sets import TEXTS, add_text_arguments, check_differ, check_number, held_texts
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.fit import GuardrailFitConfig


HELP = "fit a guardrail on a model, an SAE and two sets of text"
EXAMPLES = f"""examples:
  sae-unlearn fit --model google/gemma-2-2b-it \\
      --sae google/gemma-scope-2b-pt-res --sae-subfolder layer_3/width_16k/average_l0_142 \\
      --forget biology.txt --retain other.jsonl --chat-template --output forget-biology
  sae-unlearn fit --model demo --sae demo --forget topic.txt --retain rest.txt --output forget-topic
  sae-unlearn fit --model demo --sae demo --forget tofu:forget10 --retain tofu:retain90 --action refuse \\
      --refusal "I cannot help with that." --output forget-authors
  sae-unlearn fit --model MODEL --sae SAE --forget topic.txt --retain traffic.jsonl --for-serving --max-length 2048 \\
      --store-probe --output forget-topic
  sae-unlearn fit --model demo --sae demo --forget topic.txt --retain default --search --output forget-topic
  sae-unlearn fit --model demo --sae demo --features 12,406,981 --threshold 0.6 --clamp-value -500 --output by-hand

several processes: accelerate launch --num_processes 4 -m sae_unlearn fit ...

{TEXTS}"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    add_sae_arguments(
        parser,
        "Hub id, folder or RELEASE/ID of an SAE of one of the model's layers, demo, or auto (see sae-unlearn saes)",
    )
    add_text_arguments(
        parser,
        forget="texts of the topic; start with 100 paragraphs",
        retain="other texts as in deployment, with neighbors of the topic",
    )
    add_options(parser, GuardrailFitConfig)
    search = parser.group("search")
    search.add_argument(
        "--search",
        action="store_true",
        help="try several SAEs, statistics and numbers of features, choose on rows put aside, and report on others",
    )
    search.add_argument(
        "--search-minutes", type=float, metavar="X", help="minutes after which no candidate is begun (default: 20)"
    )
    search.add_argument("--search-saes", nargs="+", metavar="SAE", help="further SAEs to try, of any layer")
    add_output_argument(parser, "folder for the adapter, its card and its picture")
    output = parser.group("output")
    output.add_argument("--push-to-hub", metavar="REPO_ID", help="upload it to this repository, such as me/name")
    output.add_argument("--private", action="store_true", help="make that repository private")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB
    from sae_unlearn.cli.data_sets import texts_of
    from sae_unlearn.cli.inputs import load_model, load_sae, load_saes
    from sae_unlearn.cli.outputs import output_folder
    from sae_unlearn.cli.show import describe
    from sae_unlearn.guardrail import fit_guardrail, search_guardrail
    from sae_unlearn.guardrail.config_parts.layout import PICTURE
    from sae_unlearn.guardrail.fit.topk_approximation import with_rule_for
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder
    from sae_unlearn.guardrail.tuning.verdict import judge
    from sae_unlearn.sae.choice import AUTO

    config = options_from(args, GuardrailFitConfig, progress=args.progress)
    _check_upload(args)
    _check_search(args)
    output = output_folder(args.output)
    forget, retain = texts_of(args, "forget"), texts_of(args, "retain")
    place = (args.sae_subfolder, args.sae_revision)
    several = args.search and args.sae == AUTO and not any(place)
    saes = load_saes([AUTO], args.model) if several else [load_sae(args.sae, *place, model=args.model)]
    saes += load_saes(args.search_saes or (), args.model)
    if args.sae == AUTO and not args.search:
        config = with_rule_for(config, saes[0])
    texts = held_texts(forget, config.text_column), held_texts(retain, config.text_column)
    check_number(texts[0])
    check_differ(*texts)
    _name_duplicates(*texts)
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    if args.search:
        assert forget is not None
        assert retain is not None
        minutes = {} if args.search_minutes is None else {"minutes": args.search_minutes}
        guarded = search_guardrail(model, tokenizer, saes, forget, retain, config=config, **minutes)
    else:
        guarded = fit_guardrail(model, tokenizer, saes[0], forget, retain, config=config)
    if process_index() > 0:  # all processes of a launch end with the same guardrail
        return 0
    guarded.save_pretrained(output)
    picture = str(output / PICTURE)
    if not (output / PICTURE).is_file():
        measured = (next(iter(guarded.peft_config.values())).calibration or {}).get("statistic_retain")
        picture = f"no picture: {NO_MATPLOTLIB if measured else 'nothing was measured'}"
    folder = GuardrailFolder.open(output)
    calibration = folder.artefact().config.calibration or {}
    if args.search:
        print(f"{_candidates(calibration['search'])}\n")
    verdict = judge(calibration, output.as_posix())
    if verdict is not None:
        print(f"Verdict\n\n{verdict}\n")
        args.ready = verdict.ready
    print(describe(folder))
    print(f"\nWritten to {output}: the adapter and its card (README.md); {picture}")
    if args.push_to_hub:
        done = guarded.push_to_hub(args.push_to_hub, private=args.private or None)
        print(f"Uploaded to {args.push_to_hub}, commit {done.oid}")
    return 0


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one; none if the verdict names another thing to do first."""
    if not getattr(args, "ready", True):
        return ""
    if args.for_serving:
        return f"sae-unlearn serve {args.model} --adapter {Path(args.output).as_posix()}"
    return f"sae-unlearn check --model {args.model} --adapter {Path(args.output).as_posix()}"


def _name_duplicates(forget: list[Any] | None, retain: list[Any] | None) -> None:
    """Say which texts stand in a corpus twice, or in both. Streams are not read for it."""
    from sae_unlearn.cli.data_sets import repeated
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.fit.near_duplicates import near_duplicates

    if os.environ.get("RANK", "0") != "0":  # one process of a launch says it
        return
    for role, texts in (("forget", forget), ("retain", retain)):
        if count := repeated(texts or []):
            print(f"{count} {role} texts repeat another one, so held-out rows were seen by the fit; remove them.")
    pairs = near_duplicates(forget or (), retain or ())
    if pairs:
        print(f"{len(pairs)} forget texts are near duplicates of retain texts; remove them from one side:")
    for pair in pairs[:5]:
        print(f"  forget {pair.forget} and retain {pair.retain} ({pair.overlap:.0%}): {printable(pair.words)}...")


def _candidates(search: dict[str, Any]) -> str:
    """The candidates of a search as a table, the chosen one marked."""
    from sae_unlearn.files.terminal import printable, table

    rows = [["", "SAE", "layer", "statistic", "features", "AUROC", "short text", "fires on topic", "on other"]]
    for place, found in enumerate(search["candidates"]):
        own = found["settings"]
        mark = "*" if place == search["chosen"] else ""
        settings = [mark, printable(str(own["sae"])), str(own["layer"]), own["statistic"], str(own["num_features"])]
        values = [found.get(name) for name in ("auroc", "auroc_short")]
        rates = [found.get(f"fire_rate_{role}") for role in ("forget", "retain")]
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([*settings, *shown, *("-" if rate is None else f"{rate:.0%}" for rate in rates)])
    return f"Candidates, measured on rows put aside (* chosen; the verdict is on other rows)\n\n{table(rows)}"


def _check_search(args: argparse.Namespace) -> None:
    if not args.search and (args.search_minutes is not None or args.search_saes):
        raise UnlearnError("--search-minutes and --search-saes are options of a search. Pass --search, too.")
    if args.search and not (args.forget and args.retain):
        raise UnlearnError("--search needs --forget and --retain. Pass both.")


def _check_upload(args: argparse.Namespace) -> None:
    if args.private and not args.push_to_hub:
        raise UnlearnError("--private is an option of an upload. Pass --push-to-hub, too.")
    if args.push_to_hub:
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(args.push_to_hub)
