"""The command `sae-unlearn show`: a guardrail or a bundle as text and as a page."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.arguments import (
    Parser,
    add_adapter_arguments,
    add_labels_argument,
    add_model_arguments,
    add_options,
    options_from,
)
from sae_unlearn.cli.data_sets import add_text_arguments
from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.evaluation import PictureConfig


if TYPE_CHECKING:
    from sae_unlearn.evaluation import GuardrailPicture
    from sae_unlearn.guardrail.storage.bundle_index import Bundle
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

HELP = "describe a guardrail or a bundle as text and as a page, without a model"
EXAMPLES = """examples:
  sae-unlearn show forget-biology
  sae-unlearn show forget-all --adapter-subfolder biology
  sae-unlearn show user/forget-biology --adapter-revision "<commit>"
  sae-unlearn show forget-biology --html page.html
  sae-unlearn show forget-biology --labels neuronpedia --html page.html
  sae-unlearn show forget-biology --html page.html --model google/gemma-2-2b-it \\
      --forget biology.txt --retain other.jsonl --sweep sweep.json

the page: one HTML file that loads nothing from the network. With a model and texts it has the features' top contexts,
which are pieces of your texts, and the loss at other doses and thresholds
"""


def add_arguments(parser: Parser) -> None:
    add_adapter_arguments(parser, "folder or Hub id of a guardrail, or of a bundle", positional=True)
    add_labels_argument(parser)
    page = parser.group("page")
    page.add_argument("--html", metavar="FILE", help="save a page with pictures")
    page.add_argument("--sweep", metavar="FILE", help="file of the sweeps: read if it exists, or else saved")
    page.add_argument("--no-sweep", action="store_true", help="do not measure other doses and thresholds")
    add_options(parser, PictureConfig)
    add_model_arguments(parser, required=False)
    add_text_arguments(parser, forget="texts of the topic, for the page", retain="other texts, for the page")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.inputs import base_name
    from sae_unlearn.cli.outputs import new_file
    from sae_unlearn.guardrail.storage.bundle_index import BundleGiven
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    given = [f"--{name}" for name in ("model", "forget", "retain", "sweep") if getattr(args, name)]
    if given and not args.html:
        raise UnlearnError(f"{given[0]} is an option of a page. Pass --html FILE, too.")
    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    labels: dict[int, str] = {}
    try:
        print(describe(folder))
        args.base = base_name(folder.config())
        labels = labels_of(args, folder)
        if args.labels:
            print(f"\n{describe_labels(labels, folder)}")
    except BundleGiven as found:
        if args.html or args.labels:
            raise UnlearnError(f"Pass --adapter-subfolder: a page and labels are of one guardrail. {found}.") from found
        print(describe_bundle(folder, found.bundle))
    if args.html:
        path = new_file(args.html, "--html")
        replace(_picture(args, folder), labels=labels).save(path)
        print(f"\nPage: {path}")
    return 0


def labels_of(args: argparse.Namespace, folder: "GuardrailFolder") -> dict[int, str]:
    """Return the labels of the guarded features that `--labels` asks for; none without it."""
    if not args.labels:
        return {}
    from sae_unlearn.evaluation.explorer.labels import feature_labels
    from sae_unlearn.evaluation.explorer.neuronpedia import neuronpedia_id

    config = folder.artefact().config
    ids = [*(config.feature_ids or ()), *(config.gate_feature_ids or ())]
    return feature_labels(args.labels, ids, neuronpedia_id(config.sae_source))


def describe_labels(labels: dict[int, str], folder: "GuardrailFolder") -> str:
    """Return the features and their labels as text."""
    ids = folder.artefact().config.feature_ids or ()
    lines = [f"  {feature:>7}   {labels.get(feature, '-')}" for feature in ids]
    known = sum(feature in labels for feature in ids)
    return "\n".join([f"Labels of {known} of {len(ids)} features, written by language models", "", *lines])


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    inside = ["--adapter-subfolder", args.adapter_subfolder] if args.adapter_subfolder else []
    given = ["--model", args.model or getattr(args, "base", "MODEL"), "--adapter", args.adapter, *inside]
    return shlex.join(["sae-unlearn", "check", *given])


def _picture(args: argparse.Namespace, folder: "GuardrailFolder") -> "GuardrailPicture":
    from sae_unlearn.cli.data_sets import texts_of
    from sae_unlearn.cli.inputs import load_model
    from sae_unlearn.evaluation import Sweep, picture_guardrail, stored_picture
    from sae_unlearn.guardrail import attach_guardrail

    kept = Sweep.load(args.sweep) if args.sweep and Path(args.sweep).is_file() else None
    sources = {role: getattr(args, role) for role in ("forget", "retain") if getattr(args, role)}
    if not args.model:
        if sources:
            raise UnlearnError(f"--{next(iter(sources))}: texts need a model. Pass --model.")
        if args.sweep and kept is None:
            raise FileNotFoundError(f"--sweep {args.sweep}: the file does not exist. Pass --model to measure one.")
        return stored_picture(folder, sweep=kept)
    if not sources:
        raise UnlearnError("--model reads texts. Pass --forget, --retain, or both.")
    texts: dict[str, Any] = {role: texts_of(args, role) for role in sources}
    config = options_from(args, PictureConfig, progress=args.progress)
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    guarded = attach_guardrail(model, folder)
    sweep: Sweep | bool = not args.no_sweep if kept is None else kept
    picture = picture_guardrail(guarded, tokenizer, sweep=sweep, config=config, **texts)
    if args.sweep and kept is None and picture.sweep is not None:
        picture.sweep.save(args.sweep)
    return picture


def describe(folder: "GuardrailFolder") -> str:
    """Return the description of a saved guardrail, which may come from an untrusted source.

    It is checked as for attaching, and control characters in its strings are escaped.

    Raises:
        GuardrailError: If the folder holds no guardrail, or it is malformed.
    """
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, WEIGHTS_NAME
    from sae_unlearn.guardrail.summary import guardrail_facts

    artefact = folder.artefact()
    config = artefact.config
    calibration = config.calibration or {}
    size = sum(folder.path(name).stat().st_size for name in (CONFIG_NAME, WEIGHTS_NAME))
    fields = guardrail_facts(config, artefact.tensors["decoder.clamp"].tolist()) | {
        "probe": "holds rows of the texts it was fitted on" if calibration.get("probe") else "none",
        "size": f"{size / 1e3:,.1f} kB",
        "written by": f"sae_unlearn {config.sae_unlearn_version}, format {config.format_version}",
    }
    if artefact.revision:
        fields["commit"] = artefact.revision
    width = max(map(len, fields))
    inside = f", folder {printable(folder.subfolder)}" if folder.subfolder else ""
    lines = [f"Guardrail {printable(folder.source)}{inside}", ""]
    lines += [f"  {name:<{width}}   {printable(value)}" for name, value in fields.items()]
    return "\n".join([*lines, "", _calibration(calibration), "", *_warnings(calibration)])


def describe_bundle(folder: "GuardrailFolder", bundle: "Bundle") -> str:
    """Return the description of a bundle: its members and each guardrail, all of one commit.

    Raises:
        GuardrailError: If a member is missing or malformed.
    """
    from sae_unlearn.files.terminal import printable
    from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME

    lines = [f"Bundle {printable(folder)}", "", *(f"  guardrail   {name}" for name in bundle.guardrails)]
    if bundle.lora:
        folder.member(bundle.lora).path(CONFIG_NAME)
        lines.append(f"  LoRA        {bundle.lora}, which PEFT loads without sae_unlearn")
    if folder.commit:
        lines.append(f"  commit      {folder.commit}")
    shown = [describe(folder.member(name)) for name in bundle.guardrails]
    return "\n\n".join(["\n".join(lines), *shown])


def _calibration(calibration: dict[str, Any]) -> str:
    from sae_unlearn.checks import real
    from sae_unlearn.files.terminal import printable, table
    from sae_unlearn.guardrail.summary import curve_rows, fire_rows, fit_words

    fires = [[f"fires on {role} text", *numbers] for role, *numbers in fire_rows(calibration)]
    if not fires:
        return "Nothing was measured: features and threshold were set by hand, or the file has no measurements."
    lines = ["Calibration", "", table([["on rows held out from fitting", "rate", "95 % interval", "n"], *fires])]
    auroc = real(calibration.get("auroc"))
    if auroc is not None:
        lines += ["", f"  AUROC of the statistic, forget against retain rows: {auroc:.3f}"]
    words = fit_words(calibration)
    if words:
        lines += ["", *(f"  - {printable(text)}" for text in words)]
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
