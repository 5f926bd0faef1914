"""Fit the demo's topic for a service, and write what `generate()` answers: the reference of `equality`.

    python -m benchmarks.serving.reference FOLDER

writes `FOLDER/<adapter>/`, the guardrails, and `FOLDER/reference.json`: of each adapter, and of the bare model
(`none`), the tokens and the record of each prompt, which is answered alone. A folder that has them already is kept.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae_unlearn import attach_guardrail, detach_guardrail, fit_guardrail, record_firings, set_action
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.demo.texts import SIDES, load_demo_texts


TOKENS = 12
"""Tokens that are generated for each prompt."""

FIELDS = ("fired", "at_token", "evidence", "tokens")
"""Of a record, what is compared."""

ADAPTERS: dict[str, dict[str, Any]] = {
    "prefix": {"gate_scope": "prefix", "statistic": "ratio"},
    "sequence": {"gate_scope": "sequence", "statistic": "ratio"},
}
"""The guardrails that are fitted, and the options of each fit."""

ACTIONS = ("record", "refuse")
"""Guardrails like `prefix`, with another action."""


def prompts() -> list[str]:
    """34 prompts of 2 to some 400 tokens, half of them on the topic: facts, sentence beginnings, and paragraphs of one
    side with a question of the other."""
    texts, found = load_demo_texts(), []
    facts = {side: [fact.prompt for fact in texts.facts[side]] for side in SIDES}
    for side in SIDES:
        found += [*facts[side][:4], *texts.prompts[side][:5], *texts.heldout[side][:4]]
    forget, retain = (texts.heldout[side] for side in SIDES)
    found += [
        f"{retain[5]} {texts.prompts['forget'][0]}",
        f"{retain[6]} {retain[7]} {facts['forget'][5]}",
        f"{forget[5]} {texts.prompts['retain'][1]}",
        f"{forget[6]} {retain[8]} {retain[9]}",
        f"{retain[10]} {forget[7]} {retain[11]}",
        "The",
        "Cells",
        f"{retain[12]} {retain[13]} {retain[14]} {forget[8]}",
    ]
    return found


def answers(model: nn.Module, ids: list[list[int]], guarded: bool, tokens: int = TOKENS) -> list[dict[str, Any]]:
    """What `generate()` answers to each prompt alone: its tokens, and the record if the model is guarded."""
    found = []
    for row in ids:
        inputs = torch.tensor([row])
        options = {"attention_mask": torch.ones_like(inputs), "max_new_tokens": tokens, "do_sample": False}
        with torch.inference_mode():
            if guarded:
                with record_firings(model) as firings:
                    output = model.generate(input_ids=inputs, **options)
                firing = firings[0]
                record = {
                    name: getattr(firing, name) for name in ("statistic", "fired", "at_token", "evidence", "tokens")
                }
            else:
                output, record = model.generate(input_ids=inputs, **options), None
        found.append({"tokens": output[0, len(row) :].tolist(), "record": record})
    return found


def main(folder: str) -> None:
    """Write the guardrails and the reference into `folder`."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "reference.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    model, tokenizer = load_demo_model()
    texts = load_demo_texts()
    for name, options in ADAPTERS.items():
        if not (out / name).is_dir():
            guarded = fit_guardrail(model, tokenizer, load_demo_sae(), texts.forget, texts.retain, **options)
            guarded.save_pretrained(out / name)
            if name == "prefix":
                for action in ACTIONS:
                    set_action(guarded, action, message="I cannot help with that.", tokenizer=tokenizer)
                    guarded.save_pretrained(out / action)
            model = detach_guardrail(guarded)
    found.setdefault("ids", [tokenizer(text)["input_ids"] for text in prompts()])
    for name in ("none", *ADAPTERS, *ACTIONS):
        if name not in found:
            on = model if name == "none" else attach_guardrail(model, out / name)
            found[name] = answers(on, found["ids"], name != "none")
            model = model if name == "none" else detach_guardrail(on)
            file.write_text(json.dumps(found))
            print(name, "fired", sum(bool(a["record"] and a["record"]["fired"]) for a in found[name]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
