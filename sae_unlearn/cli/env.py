"""The command `sae-unlearn env`: versions, devices and formats of this installation."""

import argparse
import json
import platform
from importlib import metadata
from typing import Any

from sae_unlearn.cli.arguments import Parser


HELP = "print versions, devices and formats for a bug report"
EXAMPLES = """examples:
  sae-unlearn env
  sae-unlearn env --json

The report has neither paths, nor user names, nor environment variables.
"""

DISTRIBUTION = "sae-unlearn"
REQUIRED = ("torch", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub", "jinja2")
OPTIONAL = (
    "tokenizers",
    "numpy",
    "datasets",
    "scikit-learn",
    "rouge-score",
    "matplotlib",
    "gguf",
    "lm-eval",
    "sae-lens",
    "triton",
    "deepspeed",
    "bitsandbytes",
    "vllm",
)


def add_arguments(parser: Parser) -> None:
    parser.group("output").add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    found = environment()
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0


def next_step(args: argparse.Namespace) -> str:
    """Return "": no command follows."""
    return ""


def environment() -> dict[str, Any]:
    """Return versions, devices and formats of this process, as JSON types.

    Returns:
        `sae_unlearn` (str): version of this package; `installed` (str or None): version that pip installed, None if
            the package runs from a checkout; `formats` (dict): format versions of saved guardrails and bundles;
            `python`, `platform` (str); `packages` (dict): per distribution `version` (str or None if it is not
            installed), `required` (bool), `supported` (str or None if unknown: the versions that pip accepts) and
            `in_range` (bool or None); `devices` (list of str); `cores` (int): CPU threads that torch uses.
    """
    import torch

    from sae_unlearn.guardrail.config_parts.validation import FORMAT_VERSION
    from sae_unlearn.guardrail.storage.bundle_index import BUNDLE_VERSION
    from sae_unlearn.version import __version__

    ranges = supported_ranges()
    return {
        "sae_unlearn": __version__,
        "installed": installed_version(DISTRIBUTION),
        "formats": {"guardrail": FORMAT_VERSION, "bundle": BUNDLE_VERSION},
        "python": platform.python_version(),
        "platform": f"{platform.python_implementation()} on {platform.platform()}",
        "packages": {name: _package(name, ranges.get(_key(name))) for name in (*REQUIRED, *OPTIONAL)},
        "devices": _devices(),
        "cores": torch.get_num_threads(),
    }


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def supported_ranges() -> dict[str, str]:
    """Return the version specifiers of this package by distribution; empty in a bare checkout."""
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    return {_key(found.name): str(found.specifier) for found in map(Requirement, declared) if found.specifier}


def as_text(found: dict[str, Any]) -> str:
    """Return the environment as aligned lines for a bug report."""
    formats = ", ".join(f"{name} {version}" for name, version in found["formats"].items())
    lines = [
        ("sae_unlearn", found["sae_unlearn"] + _installation(found)),
        ("formats", formats),
        ("python", found["python"]),
        ("platform", found["platform"]),
        *((name, _package_text(package)) for name, package in found["packages"].items()),
        ("device", ", ".join(found["devices"]) + f" ({found['cores']} CPU threads)"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}   {text}" for name, text in lines)


def _installation(found: dict[str, Any]) -> str:
    if found["installed"] is None:
        return " (not installed by pip: the supported versions are unknown)"
    return "" if found["installed"] == found["sae_unlearn"] else f" (pip installed {found['installed']})"


def _package_text(package: dict[str, Any]) -> str:
    if package["version"] is None:
        return "MISSING" if package["required"] else "not installed"
    if package["supported"] is None:
        return str(package["version"])
    return f"{package['version']} ({'supported:' if package['in_range'] else 'OUTSIDE'} {package['supported']})"


def _package(name: str, supported: str | None) -> dict[str, Any]:
    from packaging.specifiers import SpecifierSet

    version = installed_version(name)
    known = version is not None and supported is not None
    in_range = SpecifierSet(supported or "").contains(version or "", prereleases=True) if known else None
    return {"version": version, "required": name in REQUIRED, "supported": supported, "in_range": in_range}


def _devices() -> list[str]:
    """Return all devices that torch can use; only the CPU without an accelerator."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        backend = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        found.append(f"cuda:{index} {properties.name}, {memory}, {backend}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found or ["cpu"]


def _key(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
