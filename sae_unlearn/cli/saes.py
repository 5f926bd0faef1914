"""The command `sae-unlearn saes`: published SAEs of a model."""

import argparse
import json
import shlex
from typing import TYPE_CHECKING

from sae_unlearn.cli.arguments import Parser
from sae_unlearn.errors import UnlearnError


if TYPE_CHECKING:
    from sae_unlearn.sae import PublishedSAE

HELP = "list the published SAEs of a model and suggest one; needs no connection"
EXAMPLES = """examples:
  sae-unlearn saes google/gemma-2-2b-it
  sae-unlearn saes google/gemma-2-2b --layer 12
  sae-unlearn saes meta-llama/Llama-3.1-8B-Instruct --json

the name of an SAE, RELEASE/ID, is what --sae takes; --sae auto takes the suggested one
"""
NONE = """No SAE of {model} is in {source}.

Train one on your own texts: sae-unlearn train-sae --model {model} --texts TEXTS --output FOLDER"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder of a causal language model, or demo")
    listing = parser.group("list")
    listing.add_argument("--layer", type=int, metavar="N", help="list every SAE of this layer (0-based, its output)")
    listing.add_argument("--all", action="store_true", help="list every SAE, states of unfinished trainings included")
    listing.add_argument("--json", action="store_true", help="print every SAE as JSON")


def run(args: argparse.Namespace) -> int:
    import warnings

    from sae_unlearn.cli.inputs import DEMO
    from sae_unlearn.sae.directory.lookup import published_saes, suggested_sae
    from sae_unlearn.sae.directory.table import directory

    if not args.model.strip():
        raise UnlearnError("MODEL: expected a Hub id, a folder or demo, got an empty name.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = published_saes(args.model, checkpoints=args.all)
    shown = found if args.layer is None else [entry for entry in found if entry.layer == args.layer]
    if args.json:
        print(json.dumps([entry.to_dict() for entry in shown], indent=1))
        return 0 if shown else 1
    if not shown:
        layers = sorted({entry.layer for entry in found})
        others = f"No SAE of layer {args.layer}; layers with one: {', '.join(map(str, layers))}." if layers else ""
        print(others or NONE.format(model=args.model, source=directory().source))
        return 1
    for each in caught:
        print(f"Note: {each.message}\n")
    chosen = suggested_sae(shown, args.layer)
    assert chosen is not None
    print(f"Suggested: {chosen.name}\n\n{_about(chosen)}\n")
    print(_every(shown) if args.all or args.layer is not None else _releases(shown))
    print(f"\nFrom {directory().source}.")
    args.suggested = ["--sae", chosen.name, *(["--topk", "threshold"] if chosen.approximate else [])]
    if args.model == DEMO:
        print("The demo's own SAE, of layer 9, is called demo and needs no download.")
        args.suggested = ["--sae", DEMO]
    return 0


def next_step(args: argparse.Namespace) -> str:
    """Return the command to run after this one."""
    if args.json or not getattr(args, "suggested", None):
        return ""
    rest = ["--forget", "TOPIC", "--retain", "OTHER", "--output", "FOLDER"]
    return shlex.join(["sae-unlearn", "fit", "--model", args.model, *args.suggested, *rest])


def _about(entry: "PublishedSAE") -> str:
    facts = {
        "trained on": entry.model,
        "family": entry.family,
        "layer": f"{entry.layer} (its output)",
        "width": _number(entry.width),
        "L0": _number(entry.l0),
        "files": f"{entry.repository}, {entry.subfolder or 'the root'}",
        "license": entry.license or "not known; see the repository",
        "Neuronpedia": entry.neuronpedia_id or "no page known",
        "guardrail": "approximate (--topk threshold)" if entry.approximate else "exact",
    }
    return "\n".join(f"  {name:<12} {value}" for name, value in facts.items())


def _releases(entries: "list[PublishedSAE]") -> str:
    from sae_unlearn.files.terminal import table

    groups: dict[str, list[PublishedSAE]] = {}
    for entry in entries:
        groups.setdefault(entry.release, []).append(entry)
    rows = [["release", "family", "SAEs", "layers", "widths", "L0"]]
    for release, group in groups.items():
        layers, widths = ({getattr(e, name) for e in group if getattr(e, name) is not None} for name in _RANGES)
        l0s = {e.l0 for e in group if e.l0 is not None}
        ranges = [_range(sorted(layers)), _range(sorted(widths)), _range(sorted(l0s))]
        rows.append([release, group[0].family, str(len(group)), *ranges])
    return f"{table(rows)}\n\n  --layer N or --all lists their names."


def _every(entries: "list[PublishedSAE]") -> str:
    from sae_unlearn.files.terminal import table

    rows = [["name", "layer", "width", "L0", "license", "Neuronpedia"]]
    for e in entries:
        cells = [e.name, str(e.layer), _number(e.width), _number(e.l0), e.license or "-", e.neuronpedia_id or "-"]
        rows.append(cells)
    return table(rows)


def _range(values: list[float]) -> str:
    if len(values) < 4:
        return ", ".join(map(_number, values)) or "-"
    return f"{_number(values[0])} to {_number(values[-1])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


_RANGES = ("layer", "width")
