"""Resolve sae_unlearn beside engines and trainers that bound transformers; write the table of docs/versions.md.

    pip install uv
    python -m benchmarks.resolver_runs

`uv pip compile` reads metadata only: nothing is installed. Each package is resolved alone, and beside our requirements.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- resolver: begin -->", "<!-- resolver: end -->"
PACKAGES = ("vllm", "sglang", "unsloth", "llmcompressor", "axolotl", "ms-swift")
SHOWN = ("transformers", "peft", "torch", "huggingface-hub")


def core_requirements() -> list[str]:
    """Return the requirements of sae_unlearn, as `pyproject.toml` lists them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def resolve(requirements: list[str], python: str, uv: str) -> dict[str, str] | str:
    """Return the resolved versions by package, or the resolver's reason why there are none.

    Args:
        requirements (list[str]): What is to be installed together.
        python (str): The version of Python, e.g. "3.11".
        uv (str): The command.
    """
    command = [uv, "pip", "compile", "-", "--python-version", python, "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, timeout=600)
    if done.returncode:
        return " ".join(done.stderr.split())[:300]
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", done.stdout, re.MULTILINE))


def row(package: str, core: list[str], python: str, uv: str) -> str:
    """Return one row of the table."""
    alone, beside = resolve([package], python, uv), resolve([package, *core], python, uv)
    newest = alone.get(package, "?") if isinstance(alone, dict) else "does not resolve"
    if isinstance(beside, str):
        print(f"{package}: {beside}", file=sys.stderr)
        return f"| {package} | {newest} | no | | | | |"
    versions = " | ".join(beside.get(name, "") for name in SHOWN)
    return f"| {package} | {newest} | {beside.get(package, '?')} | {versions} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="version of Python to resolve for (default: 3.12)")
    parser.add_argument("--uv", default="uv", help="the uv command")
    args = parser.parse_args()
    core = core_requirements()
    lines = [
        f"Resolved on {datetime.date.today().isoformat()} for Python {args.python}.",
        "",
        "| package | newest alone | with sae_unlearn | " + " | ".join(SHOWN) + " |",
        "|" + " --- |" * (3 + len(SHOWN)),
        *(row(package, core, args.python, args.uv) for package in PACKAGES),
    ]
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
