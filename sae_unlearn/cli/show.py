"""`sae-unlearn show`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.inputs import add_model_arguments


if TYPE_CHECKING:
    from sae_unlearn.evaluation import GuardrailPicture
    from sae_unlearn.guardrail.storage.bundle_index import Bundle

HELP = "what is in a guardrail's folder or in a bundle, in words and as a page; needs no model"
EXAMPLES = """examples:
  sae-unlearn show forget-biology
  sae-unlearn show forget-all --subfolder biology
  sae-unlearn show somebody/forget-biology --revision "<commit>"
  sae-unlearn show forget-biology --html page.html
  sae-unlearn show forget-biology --html page.html --model google/gemma-2-2b-it \\
      --forget biology.txt --retain other.jsonl --sweep sweep.json

the page: one HTML file that fetches nothing. With a model and texts it has the features' top contexts, which are pieces
of your texts, and the loss at other doses and thresholds
"""

# What `picture_guardrail` has by default too; its tests hold the two together.
DEFAULTS = {"contexts": 5, "around": 16, "batch_size": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="FOLDER", help="folder or Hub id of a guardrail, or of a bundle")
    add("--revision", help="branch, tag or commit of the guardrail")
    add("--subfolder", help="folder inside it: a member of a bundle")
    add("--html", metavar="FILE", help="write a page with pictures")
    add("--model", help="Hub id or folder of the model, or demo: for a page with the features on texts")
    add_model_arguments(parser, revision="--model-revision")
    add("--forget", help="text of the topic, for the page")
    add("--retain", help="other text, for the page")
    add("--text-column", default="text", help="column or key that holds the text (default %(default)s)")
    add("--limit", type=int, help="at most so many texts of each, drawn with a fixed seed")
    add("--contexts", type=int, help=f"of each feature (default {DEFAULTS['contexts']})")
    add("--around", type=int, help=f"tokens shown before and after a peak (default {DEFAULTS['around']})")
    add("--batch-size", type=int, help=f"rows per forward pass (default {DEFAULTS['batch_size']})")
    add("--sweep", metavar="FILE", help="keep the sweeps there, and take them from there if they are")
    add("--no-sweep", action="store_true", help="measure no other doses and thresholds")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.guardrail.storage.bundle_index import BundleGiven

    given = [f"--{name}" for name in ("model", "forget", "retain", "sweep") if getattr(args, name)]
    if given and not args.html:
        raise ValueError(f"{given[0]} is for a page; give --html FILE too.")
    hub = {"revision": args.revision, "subfolder": args.subfolder}
    try:
        print(describe(args.source, **hub))
    except BundleGiven as found:
        if args.html:
            raise ValueError(f"--html is for one guardrail; give --subfolder too. {found}") from found
        print(describe_bundle(args.source, found.bundle, **hub))
    if args.html:
        path = _target(args.html)
        _picture(args, hub).save(path)
        print(f"\nPage: {path}")
    return 0


def _target(name: str) -> Path:
    """The file of the page, looked at before anything long is begun."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"--html {name} is a folder; give a file.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--html {name}: there is no folder {path.parent}.")
    return path


def _picture(args: argparse.Namespace, hub: dict[str, Any]) -> "GuardrailPicture":
    from sae_unlearn.cli.inputs import drawn, load_model, read_texts
    from sae_unlearn.evaluation import Sweep, picture_guardrail, stored_picture
    from sae_unlearn.guardrail import attach_guardrail

    kept = Sweep.load(args.sweep) if args.sweep and Path(args.sweep).is_file() else None
    sources = {role: getattr(args, role) for role in ("forget", "retain") if getattr(args, role)}
    if not args.model:
        if sources:
            raise ValueError(f"--{next(iter(sources))}: texts are read by the model; give --model.")
        if args.sweep and kept is None:
            raise FileNotFoundError(f"--sweep {args.sweep}: there is no such file, and no --model to measure one.")
        return stored_picture(args.source, sweep=kept, **hub)
    if not sources:
        raise ValueError("--model reads texts; give --forget, --retain, or both.")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}; expected at least 1.")
    texts = {role: drawn(list(read_texts(source, args.text_column)), args.limit) for role, source in sources.items()}
    options: dict[str, Any] = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    options |= {"text_column": args.text_column, "progress": args.progress} | texts
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    guarded = attach_guardrail(model, args.source, **hub)
    sweep: Sweep | bool = not args.no_sweep if kept is None else kept
    picture = picture_guardrail(guarded, tokenizer, sweep=sweep, **options)
    if args.sweep and kept is None and picture.sweep is not None:
        picture.sweep.save(args.sweep)
    return picture


def describe(source: str | os.PathLike[str], **hub: Any) -> str:
    """An artefact in words. It may come from anybody: it is checked as for attaching, and every string of its is shown
    without what a terminal would act on.

    Args:
        hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, as in `huggingface_hub`.

    Raises:
        GuardrailError: there is no guardrail, or it is malformed.
    """
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.layout import WEIGHTS_NAME
    from sae_unlearn.guardrail.storage.reading import read_artefact, read_config
    from sae_unlearn.guardrail.summary import guardrail_facts

    artefact = read_artefact(source, **hub)
    config, config_path = read_config(source, **hub)
    calibration = config.calibration or {}
    size = config_path.stat().st_size + (config_path.parent / WEIGHTS_NAME).stat().st_size
    fields = guardrail_facts(config, artefact.tensors["decoder.clamp"].tolist()) | {
        "probe": "holds rows of the texts it was fitted on" if calibration.get("probe") else "none",
        "size": f"{size / 1e3:,.1f} kB",
        "written by": f"sae_unlearn {config.sae_unlearn_version}, format {config.format_version}",
    }
    if artefact.revision:
        fields["commit"] = artefact.revision
    width = max(map(len, fields))
    inside = f", folder {printable(hub['subfolder'])}" if hub.get("subfolder") else ""
    lines = [f"Guardrail {printable(source)}{inside}", ""]
    lines += [f"  {name:<{width}}   {printable(value)}" for name, value in fields.items()]
    return "\n".join([*lines, "", _calibration(calibration), "", *_warnings(calibration)])


def describe_bundle(source: str | os.PathLike[str], bundle: "Bundle", **hub: Any) -> str:
    """A bundle in words: its members, then each guardrail as `describe` tells it, all of one commit.

    Raises:
        GuardrailError: a member is missing or malformed.
    """
    from sae_unlearn.files.hub import fetch_file
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.layout import CONFIG_NAME

    hub |= {"revision": bundle.revision or hub.get("revision")}
    lines = [f"Bundle {printable(source)}", "", *(f"  guardrail   {name}" for name in bundle.guardrails)]
    if bundle.lora:
        fetch_file(source, CONFIG_NAME, hub | {"subfolder": bundle.lora})
        lines.append(f"  LoRA        {bundle.lora}, which PEFT reads by itself")
    if bundle.revision:
        lines.append(f"  commit      {bundle.revision}")
    shown = [describe(source, **hub | {"subfolder": name}) for name in bundle.guardrails]
    return "\n\n".join(["\n".join(lines), *shown])


def _calibration(calibration: dict[str, Any]) -> str:
    from sae_unlearn.checks import real
    from sae_unlearn.files.terminal import table
    from sae_unlearn.guardrail.summary import curve_rows, fire_rows

    fires = [[f"fires on {role} text", *numbers] for role, *numbers in fire_rows(calibration)]
    if not fires:
        return "Nothing was measured: features and threshold were given by hand, or the artefact does not say."
    lines = ["Calibration", "", table([["on rows held out from fitting", "rate", "95 % interval", "n"], *fires])]
    auroc = real(calibration.get("auroc"))
    if auroc is not None:
        lines += ["", f"  AUROC of the statistic, forget against retain rows: {auroc:.3f}"]
    curve = curve_rows(calibration)[:20]
    if curve:
        head = ["retain percentile", "threshold", "fires on forget", "fires on retain"]
        lines += ["", table([head, *curve])]
    return "\n".join(lines)


def _warnings(calibration: dict[str, Any]) -> list[str]:
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.summary import fit_warnings

    found = fit_warnings(calibration)[:20]
    return ["Warnings", "", *(f"  - {printable(text)}" for text in found)] if found else ["No warnings."]
