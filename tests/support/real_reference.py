"""The demo's guardrail on the real Gemma 3 270M, and what `generate()` answers with it, for engines to compare.

Its config is the one in `model_cards`, its weights are rows of the demo's SAE; all features have one dose, and the gate
judges prefixes, as in a service.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from sae_unlearn import attach_guardrail, set_action
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


TOKENS = 8  # of each answer
KEPT = "SAE_UNLEARN_REFERENCE"
"""Environment variable with a folder in which the reference stays from run to run."""


def folder_of(temporary):
    """The folder that `benchmarks.serving.equality` reads: guardrails `prefix`, `record`, `refuse`, and answers."""
    folder = Path(os.environ.get(KEPT) or temporary)
    if not (folder / "reference.json").is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # not slower for one token at a time, and no thread waits busily
        write(folder)
        torch.set_num_threads(threads)
    return folder


def write(folder):
    """Answer the prompts one by one; a guardrail that records stands for the bare model.

    A gate that has not fired has changed nothing, so prompts on which the one that records does not fire have the same
    answer and record with any action. Those on which it fires are answered with each.
    """
    from benchmarks.forget.demo_card import SHIPPED
    from benchmarks.serving.reference import answers, prompts

    model, tokenizer = load_demo_model()
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts()]
    config = replace(GuardrailFolder.open(SHIPPED).config(), gate_scope="prefix", clamp_value=-1500.0)
    guarded = attach_guardrail(model, config, sae=load_demo_sae())

    def save(name, action):
        set_action(guarded, action, message="I cannot help with that.", tokenizer=tokenizer)
        guarded.save_pretrained(folder / name)

    save("record", "record")
    found = {"ids": ids, "record": answers(guarded, ids, guarded=True, tokens=TOKENS)}
    fired = [number for number, one in enumerate(found["record"]) if one["record"]["fired"]]
    rows = [ids[number] for number in fired]
    with guarded.disable_adapter():
        bare = answers(guarded, rows[:2], guarded=False, tokens=TOKENS)
    assert [each["tokens"] for each in bare] == [found["record"][number]["tokens"] for number in fired[:2]]
    for name, action in (("prefix", "clamp"), ("refuse", "refuse")):
        save(name, action)
        found[name] = [*found["record"]]
        for number, one in zip(fired, answers(guarded, rows, guarded=True, tokens=TOKENS), strict=True):
            found[name][number] = one
    found["none"] = [{"tokens": each["tokens"], "record": None} for each in found["record"]]
    (folder / "reference.json").write_text(json.dumps(found))
