"""From texts to a judged guardrail by the package's commands: wall times, a transcript and the SAE's measures.

    python -m benchmarks.any_model.run smollm2 --packages FOLDER --model SmolLM2-135M-Instruct --work WORK
    python -m benchmarks.any_model.run demo --data FOLDER --work WORK

`smollm2` trains an SAE for a model that has none, on text of Debian packages (see `texts`); the model comes from PyPI
(see `smollm2`). `demo` takes the demo's model and SAE and a subject of MMLU (`FOLDER/mmlu`) that no other benchmark
has as its topic. A command that has ended before is not run again. Writes `benchmarks/results/any_model_NAME.json`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.any_model.texts import write_texts
from sae_unlearn.cli.data_sets import as_text
from sae_unlearn.evaluation.datasets import mmlu_choices
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


RESULTS = Path(__file__).resolve().parents[1] / "results"
TOKENS = 40_000
SUBJECT = "clinical_knowledge"
RELATED = (
    "anatomy",
    "college_biology",
    "high_school_biology",
    "human_aging",
    "medical_genetics",
    "nutrition",
    "virology",
)
"""Subjects that are neither the topic nor other text: medicine, too."""
OTHERS = (
    "astronomy",
    "college_computer_science",
    "high_school_chemistry",
    "high_school_geography",
    "high_school_psychology",
    "high_school_us_history",
    "marketing",
    "world_religions",
)
EVALUATED = ("--limit", "24", "--max-length", "64", "--compare")
SCOUTED = ("--limit", "60", "--max-length", "64")


def smollm2_commands(model: str) -> dict[str, list[str]]:
    """Return the commands that lead from texts to a judged guardrail, by name."""
    texts = ["--forget", "topic.json", "--retain", "other.json"]
    judged = ["--forget", "judge_topic.json", "--retain", "judge_other.json"]
    return {
        "train-sae": [
            "train-sae",
            "--model",
            model,
            "--texts",
            "sae.json",
            "--max-tokens",
            str(TOKENS),
            "--output",
            "sae",
        ],
        "scout": ["scout", "--model", model, *texts, "--saes", "sae", *SCOUTED, "--picture", "layers.png"],
        "fit": ["fit", "--model", model, "--sae", "sae", *texts, "--output", "forget-food"],
        "check": ["check", model, "forget-food", *judged],
        "tune": ["tune", "forget-food", "--picture", "trade-off.png"],
        "evaluate": [*evaluated(model, "forget-food"), *judged],
    }


def demo_commands() -> dict[str, list[str]]:
    """Return the commands for the demo's model and a subject of MMLU."""
    texts = ["--forget", "topic.json", "--retain", "other.json"]
    judged = ["--forget", "judge_topic.json", "--retain", "judge_other.json"]
    adapter = f"forget-{SUBJECT}"
    return {
        "scout": ["scout", "--model", "demo", *texts, "--saes", "demo", *SCOUTED, "--picture", "layers.png"],
        "fit": ["fit", "--model", "demo", "--sae", "demo", *texts, "--output", adapter],
        "check": ["check", "demo", adapter, *judged],
        "check near": ["check", "demo", adapter, "--forget", "judge_topic.json", "--retain", "judge_near.json"],
        "tune": ["tune", adapter, "--picture", "trade-off.png"],
        "evaluate": [*evaluated("demo", adapter), *judged],
    }


def evaluated(model: str, adapter: str) -> list[str]:
    """Return the command that measures what is forgotten and kept, without its texts."""
    return ["evaluate", "--model", model, "--adapter", adapter, *EVALUATED, "--output", "report"]


def run_commands(commands: dict[str, list[str]], work: Path) -> dict[str, Any]:
    """Run commands in the folder `work`; return each one's text, seconds, exit code and output, those of before too."""
    record = work / "commands.json"
    done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for name, command in commands.items():
        if name in done:
            continue
        started = time.monotonic()
        found = subprocess.run(
            [sys.executable, "-m", "sae_unlearn", *command, "--no-progress"],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(RESULTS.parents[1]), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
        )
        done[name] = {
            "command": shlex.join(["sae-unlearn", *command]),
            "seconds": round(time.monotonic() - started),
            "exit_code": found.returncode,
            "output": found.stdout,
        }
        print(
            f"$ {done[name]['command']}\n{found.stdout}[{done[name]['seconds']} s, exit {found.returncode}]", flush=True
        )
        if found.returncode and not name.startswith("check"):  # which exits with 1 if it finds a problem
            raise SystemExit(found.stderr)
        record.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("smollm2", "demo"))
    parser.add_argument("--packages", type=Path, help="folder with the unpacked Debian packages")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2")
    parser.add_argument("--data", type=Path, help="folder that holds mmlu/")
    parser.add_argument("--commands", nargs="+", help="run these alone; results hold all that have been run")
    parser.add_argument("--work", type=Path, required=True, help="folder for texts, SAE, guardrail and report")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.name == "smollm2":
        texts = write_texts(args.packages, args.work)
        link = args.work / args.model.name
        if not link.exists():
            link.symlink_to(args.model.resolve())
        commands = smollm2_commands(args.model.name)
    else:
        texts = write_subject(args.data / "mmlu", args.work)
        commands = demo_commands()
    done = run_commands({name: commands[name] for name in args.commands or commands}, args.work)
    if "fit" not in done:
        return
    results: dict[str, Any] = {"commands": done, "texts": texts}
    results["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if (args.work / "sae").is_dir():
        results["sae"] = json.loads((args.work / "sae" / "metrics.json").read_text(encoding="utf-8"))
        results["sae"]["model"] = args.model.name
    (fitted,) = args.work.glob("forget-*")
    results["calibration"] = calibration_of(fitted)
    path = RESULTS / f"any_model_{args.name}.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_subject(data: Path, folder: Path) -> dict[str, int]:
    """Write three quarters of the subject's questions to fit on, and the rest with other subjects to judge on."""
    questions = [as_text(row) for row in mmlu_choices(SUBJECT, str(data))]
    others = {subject: [as_text(row) for row in mmlu_choices(subject, str(data))] for subject in OTHERS}
    near = [text for subject in RELATED for text in [as_text(row) for row in mmlu_choices(subject, str(data))][:12]]
    written = {
        "topic": [text for number, text in enumerate(questions) if number % 4],
        "judge_topic": questions[::4],
        "other": [text for rows in others.values() for text in rows[20:80]],
        "judge_other": [text for rows in others.values() for text in rows[:10]],
        "judge_near": near,
    }
    for name, texts in written.items():
        (folder / f"{name}.json").write_text(json.dumps(texts, indent=0, ensure_ascii=False), encoding="utf-8")
    return {name: len(texts) for name, texts in written.items()}


def calibration_of(folder: Path) -> dict[str, Any]:
    """Return the measured rates of a fitted guardrail."""
    calibration = GuardrailFolder.open(folder).artefact().config.calibration or {}
    rates = {name: calibration[name] for name in ("fire_rate_forget", "fire_rate_retain")}
    return {name: value for name, value in calibration.items() if isinstance(value, (int, float, str))} | rates


if __name__ == "__main__":
    main()
