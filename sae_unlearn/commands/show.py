"""`sae-unlearn show`."""

import argparse
import os
from typing import Any


HELP = "what is in a guardrail's folder; needs no model"
EXAMPLES = """examples:
  sae-unlearn show forget-biology
  sae-unlearn show somebody/forget-biology --revision 0123abc
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", help="folder or Hub id of a guardrail")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--subfolder", help="folder inside the repository")


def run(args: argparse.Namespace) -> int:
    print(describe(args.source, revision=args.revision, subfolder=args.subfolder))
    return 0


def describe(source: str | os.PathLike[str], **hub: Any) -> str:
    """An artefact in words. It may come from anybody: it is checked as for attaching, and every string of its is shown
    without what a terminal would act on.

    Args:
        hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, as in `huggingface_hub`.

    Raises:
        GuardrailError: there is no guardrail, or it is malformed.
    """
    from sae_unlearn.console import printable
    from sae_unlearn.guardrail.artefact import read_artefact, read_config
    from sae_unlearn.guardrail.seal import WEIGHTS_NAME

    artefact = read_artefact(source, **hub)
    config, config_path = read_config(source, **hub)
    calibration = config.calibration or {}
    clamp = artefact.tensors["decoder.clamp"]
    size = config_path.stat().st_size + (config_path.parent / WEIGHTS_NAME).stat().st_size
    ids = ", ".join(map(str, config.feature_ids)) if config.feature_ids else "ids not recorded"
    sae = config.sae_source or {}
    named = [f"{key} {sae[key]}" for key in ("id", "subfolder", "revision", "architecture", "sha256") if sae.get(key)]
    edit = _real(calibration.get("edit_to_residual"))
    fields = {
        "base model": f"{config.base_model_name_or_path or 'not recorded'}"
        f" ({config.num_layers or '?'} layers, width {config.hidden_size})"
        + ("" if config.base_fingerprint else ", no fingerprint"),
        "layer": f"{config.layer} (its output)",
        "features": f"{config.num_features}: {ids}",
        "SAE": ", ".join(named) or "not recorded",
        "gate": f"statistic {config.statistic} above {config.threshold:.4g}, scope {config.gate_scope}, "
        + ("stays fired" if config.sticky else "may fall quiet again")
        + f", at least {config.min_tokens} tokens",
        "action": config.action,
        "dose": f"clamp {config.clamp_mode} features at {float(clamp.min()):.4g} to {float(clamp.max()):.4g}"
        + (f" ({config.clamp_scale:g} in unit {config.clamp_unit})" if config.clamp_scale is not None else ""),
        "edit": "not measured" if edit is None else f"{edit:.3g} of the residual stream's norm",
        "probe": "holds rows of the texts it was fitted on" if calibration.get("probe") else "none",
        "size": f"{size / 1e3:,.1f} kB",
        "written by": f"sae_unlearn {config.sae_unlearn_version}, format {config.format_version}",
    }
    if artefact.revision:
        fields["commit"] = artefact.revision
    width = max(map(len, fields))
    lines = [f"Guardrail {printable(source)}", ""]
    lines += [f"  {name:<{width}}   {printable(value)}" for name, value in fields.items()]
    return "\n".join([*lines, "", _calibration(calibration), "", *_warnings(calibration)])


def _calibration(calibration: dict[str, Any]) -> str:
    from sae_unlearn.console import table

    rows = [["on rows held out from fitting", "rate", "95 % interval", "n"]]
    for title, key in (("fires on forget text", "fire_rate_forget"), ("fires on retain text", "fire_rate_retain")):
        found = calibration.get(key)
        if isinstance(found, dict):
            interval = f"{_percent(found.get('low'))} to {_percent(found.get('high'))}"
            rows.append([title, _percent(found.get("rate")), interval, _count(found.get("n"))])
    if len(rows) == 1:
        return "Nothing was measured: features and threshold were given by hand, or the artefact does not say."
    lines = ["Calibration", "", table(rows)]
    auroc = _real(calibration.get("auroc"))
    if auroc is not None:
        lines += ["", f"  AUROC of the statistic, forget against retain rows: {auroc:.3f}"]
    curve = calibration.get("curve")
    if isinstance(curve, list) and curve:
        rows = [["retain percentile", "threshold", "fires on forget", "fires on retain"]]
        for point in [point for point in curve[:20] if isinstance(point, dict)]:
            rows.append(
                [
                    _number(point.get("percentile")),
                    _number(point.get("threshold")),
                    _percent(point.get("forget_rate")),
                    _percent(point.get("retain_rate")),
                ]
            )
        lines += ["", table(rows)]
    return "\n".join(lines)


def _warnings(calibration: dict[str, Any]) -> list[str]:
    from sae_unlearn.console import printable

    found = calibration.get("warnings")
    found = [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
    return ["Warnings", "", *(f"  - {printable(text)}" for text in found[:20])] if found else ["No warnings."]


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e100:
        return None
    return float(value)


def _number(value: Any) -> str:
    return "-" if _real(value) is None else f"{_real(value):.4g}"


def _percent(value: Any) -> str:
    return "-" if _real(value) is None else f"{_real(value):.1%}"


def _count(value: Any) -> str:
    return "-" if _real(value) is None else f"{_real(value):.0f}"
