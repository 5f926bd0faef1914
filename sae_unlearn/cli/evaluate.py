"""`sae-unlearn evaluate`."""

import argparse
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.inputs import add_adapter_arguments, add_model_arguments


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

HELP = "what a model knows of what it should forget and of what it should keep, with or without an adapter"
EXAMPLES = """examples:
  sae-unlearn evaluate --model google/gemma-2-2b-it --adapter forget-biology \\
      --forget wmdp:bio --retain mmlu:college_biology mmlu:astronomy other.jsonl --chat-template --output report
  sae-unlearn evaluate --model demo --adapter sae-unlearn-demo/forget-biology --compare \\
      --forget questions.json --retain traffic.txt --output report
  sae-unlearn evaluate --model google/gemma-2-2b-it --adapter forget-all --subfolder biology --forget wmdp:bio \\
      --retain other.jsonl --output report

several processes: accelerate launch --num_processes 4 -m sae_unlearn evaluate ...

data: a name such as tofu:forget10, tofu-choices:forget10, muse:forget_qa, muse-passages:forget, muse-texts:forget,
wmdp:bio, mmlu:anatomy, rwku:forget_level2, relation:country_capital_city, each with @FOLDER_OR_HUB_ID behind it to say
where from (relation needs it); or a file: facts (.json, .jsonl: prompt, answers), choices (question, choices, answer),
or texts as for fit
"""

# What `evaluate` has by default too; its tests hold the two together.
DEFAULTS: dict[str, Any] = {"batch_size": 8, "max_length": 512}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="Hub id or folder of a causal language model, or demo")
    add_model_arguments(parser)
    add_adapter_arguments(parser)
    add("--compare", action="store_true", help="measure without the adapter too, and tell what it changes")
    add("--forget", nargs="+", default=[], metavar="DATA", help="what should be forgotten")
    add("--retain", nargs="+", default=[], metavar="DATA", help="what should be kept")
    add("--text-column", default="text", help="column or key that holds a text (default %(default)s)")
    add("--limit", type=int, help="at most so many rows of each set, drawn with a fixed seed")
    add("--reference", metavar="REPORT", help="report of a model that never saw the forget set: adds forget quality")
    add("--output", required=True, help="folder for the report: tables, picture, JSON")
    add("--batch-size", type=int, help=f"rows per forward pass (default {DEFAULTS['batch_size']})")
    add("--max-length", type=int, help=f"tokens of a text at most (default {DEFAULTS['max_length']})")
    add("--max-new-tokens", type=int, help="of completions (default: as the longest answer needs)")
    add("--orders", type=int, help="of the options where letters are asked for (default: as many as options)")
    add("--chat-template", action="store_true", default=None, help="put prompts into the tokenizer's chat template")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.backbone.distributed import process_index
    from sae_unlearn.cards.plotting import NO_MATPLOTLIB
    from sae_unlearn.cli.inputs import NO_ADAPTER, load_model, output_folder
    from sae_unlearn.evaluation import Report, compare, evaluate
    from sae_unlearn.evaluation.report.report import draw_reports

    if not args.forget and not args.retain:
        raise ValueError("Nothing to measure; give --forget, --retain, or both.")
    if args.compare and not args.adapter:
        raise ValueError("--compare measures with and without an adapter; give --adapter.")
    if args.subfolder and not args.adapter:
        raise ValueError(NO_ADAPTER)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}; expected at least 1.")
    output = output_folder(args.output)
    reference = Report.load(args.reference) if args.reference else None
    sets = {side: read_sets(getattr(args, side), args.text_column, args.limit) for side in ("forget", "retain")}
    names = (*DEFAULTS, "max_new_tokens", "orders", "chat_template")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options |= {"forget": sets["forget"] or None, "retain": sets["retain"] or None, "progress": args.progress}
    model, tokenizer = load_model(args.model, args.revision, args.device, args.dtype)
    before = None
    if args.compare:
        before = evaluate(model, tokenizer, reference=reference, **options)
        if process_index() == 0:
            before.save(output / "before")
    where = {"revision": args.adapter_revision, "subfolder": args.subfolder}
    adapted = with_adapter(model, args.adapter, **where) if args.adapter else model
    report = evaluate(adapted, tokenizer, reference=reference, **options)
    if process_index() > 0:  # all processes of a launch end with the same report
        return 0
    written = report.save(output)
    shown = report.to_markdown()
    if before is not None:
        comparison = compare(before, report)
        written += comparison.save(output)
        for picture in (path for path in written if path.suffix == ".png"):
            draw_reports([before, report], picture)
        shown = comparison.to_markdown()
    print(shown)
    print(f"Written to {output}: {', '.join(path.name for path in written)}")
    if not any(path.suffix == ".png" for path in written):
        print(f"(no picture: {NO_MATPLOTLIB})")
    return 0


def read_sets(names: list[str], text_column: str = "text", limit: int | None = None) -> dict[str, list[Any]]:
    """The sets that `names` name, by their names without folders.

    Raises:
        FileNotFoundError, ValueError: a set that is not there, or cannot be read.
    """
    from pathlib import Path

    from sae_unlearn.cli.inputs import drawn, read_texts
    from sae_unlearn.evaluation.datasets import read_questions
    from sae_unlearn.evaluation.datasets.registry import is_named, read_named

    found: dict[str, list[Any]] = {}
    for name in names:
        path = Path(name).expanduser()
        if not path.exists() and is_named(name):
            label, rows = name.partition("@")[0], read_named(name)
        else:
            rows = (read_questions(path) if path.is_file() else None) or list(read_texts(name, text_column))
            label = path.name if path.exists() else name
        rows = drawn(rows, limit)
        if label in found:
            raise ValueError(f"Two sets are called {label!r}; rename one of the files, or give it once.")
        found[label] = [row[text_column] if isinstance(row, dict) else row for row in rows]
    return found


def with_adapter(
    model: "PreTrainedModel", source: str, revision: str | None = None, subfolder: str | None = None
) -> "nn.Module":
    """A guardrail, any other PEFT adapter, a bundle, or one member of it put on a model.

    Args:
        subfolder: folder inside `source`; of a bundle, the member's name.

    Raises:
        OSError, ValueError: there is none, or it does not belong to the model.
    """
    from peft import PeftConfig, PeftModel

    from sae_unlearn.files.untrusted import clean_subfolder
    from sae_unlearn.guardrail import SAEGuardrailConfig, attach_bundle, attach_guardrail
    from sae_unlearn.guardrail.storage.bundle_index import find_bundle

    inside = clean_subfolder(subfolder)
    hub: dict[str, Any] = {"revision": revision, "subfolder": inside or None}
    if inside and find_bundle(source, revision=revision) is not None:
        return attach_bundle(model, source, names=[inside], revision=revision)
    try:
        kind = PeftConfig.from_pretrained(source, **hub)
    except ValueError as error:
        if not inside and find_bundle(source, revision=revision) is not None:
            return attach_bundle(model, source, revision=revision)
        named = f"{source} --subfolder {inside}" if inside else source
        raise FileNotFoundError(f"--adapter {named} is neither a folder with an adapter nor one on the Hub.") from error
    if isinstance(kind, SAEGuardrailConfig):
        return attach_guardrail(model, source, **hub)
    return PeftModel.from_pretrained(model, source, **hub).eval()
