"""Evaluations of tiny models, which each process writes down; also run by `accelerate launch`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from lettered_words import lettered_tokenizer
from peft import PeftModel
from test_evaluate_models import ANSWERS, EXAM, FACTS, TEXTS
from tiny_topic import tiny_parts

from sae_unlearn import attach_guardrail
from sae_unlearn.backbone.distributed import leaving_launch
from sae_unlearn.evaluation import evaluate


def evaluated(adapters: Path) -> dict:
    """Reports of a bare, a guarded and a LoRA model, as plain data.

    Args:
        adapters: folder with `guardrail` and `lora`.
    """
    tokenizer, threads = lettered_tokenizer(), torch.get_num_threads()
    torch.set_num_threads(1)
    models = {
        "bare": tiny_parts()[0],
        "guarded": attach_guardrail(tiny_parts()[0], adapters / "guardrail"),
        "lora": PeftModel.from_pretrained(tiny_parts()[0], adapters / "lora").eval(),
    }
    sides = {"forget": [*FACTS, *ANSWERS, *TEXTS[:2]], "retain": {"exam": EXAM, "text": TEXTS}}
    found = {}
    for name, model in models.items():
        for batch_size in (2, 16):  # several batches, and one, of which the second process has none
            report = evaluate(model, tokenizer, **sides, batch_size=batch_size, progress=False)
            found[f"{name}, {batch_size}"] = report.to_dict()
    torch.set_num_threads(threads)
    return found


def different_rows() -> str:
    """What is said where the processes are given different texts."""
    try:
        evaluate(tiny_parts()[0], lettered_tokenizer(), TEXTS[PartialState().process_index :], progress=False)
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    with leaving_launch():
        state, adapters, out = PartialState(cpu=True), Path(sys.argv[1]), Path(sys.argv[2])
        found = {"processes": state.num_processes, "reports": evaluated(adapters), "different": different_rows()}
        (out / f"{state.process_index}.json").write_text(json.dumps(found))
