"""What is done where the gate fires: five edits behind one gate, at the same damage, and whether sense is left.

    python -m benchmarks.forget.edits run --data FOLDER --results FOLDER        # goes on where it was cut
    python -m benchmarks.forget.edits summary --results FOLDER                  # writes benchmarks/results

With h the residual stream, `delta` the default edit (the features active at a hot token clamped to minus their dose):

    clamp         h + delta
    norm kept     (h + delta) |h| / |h + delta|: h turned towards delta, as GUARD-IT does, its length unchanged
    falling dose  h + delta min(1, r / FULL), r the share of hot tokens among the last WINDOW; it falls with the topic
    to zero       features set to 0 in place of minus a dose; the strength is how many
    refusal       clamp, and from the answer's beginning a fixed sentence

Of each edit the strength is taken that forgets most on validation texts within the budget (see `choice`), or the
weakest if none is within, which the results say. Then, once, the test texts: loss of topic and other text, the
likeliest option of a question, and what is said. Sense is asked of greedy continuations of the topic's test texts on
which the gate fires: the bare model's loss on the words, and the share of their triples of tokens that occurred before.
A continuation is called gibberish if the loss is above SENSELESS nats per token or that share is above REPEATED. The
bare model's own continuations are the control. The demo's facts are asked on the demo's topic alone.

The gate is the same for all, so what comes back through the gate, such as behind filler, is the same for all as well.
"""

import argparse
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.forget.cached_front import Front, cached_front
from benchmarks.forget.choice import Candidate, choose
from benchmarks.forget.compare import add_setting_arguments, settings, write
from benchmarks.forget.fitting import fitted, validation_changes
from benchmarks.forget.measures import (
    SIDES,
    base_figures,
    choices_compared,
    compared,
    gate_fires,
    guarded_losses,
    right_choices,
)
from benchmarks.forget.methods import RESIDUAL_DOSES
from benchmarks.forget.setting import Setting, Size, Texts
from benchmarks.forget.table import RESULTS
from sae_unlearn.cli.inputs import load_model, load_sae
from sae_unlearn.demo.texts import load_demo_texts
from sae_unlearn.evaluation import ask
from sae_unlearn.evaluation.metrics.recall import complete
from sae_unlearn.guardrail import GuardrailError, guard_layers
from sae_unlearn.guardrail import layer as layer_module
from sae_unlearn.guardrail.weights import GuardrailDecoder


WINDOW, FULL = 16, 0.25
SENSELESS, REPEATED = 6.0, 0.5
CONTINUED, NEW, AT_ONCE, SHOWN = 24, 24, 8, 6
REFUSAL = "I cannot help with that."
DEMO = "demo"
TO_ZERO = {40: 99.0, 200: 95.0, 400: 90.0}
"""Features, and the percentile of the ratio that leaves at least as many of the demo's 4,096 to choose from."""
EDITS = ("clamp", "norm kept", "falling dose", "to zero", "refusal")
BARE = "bare model"


class NormKept(GuardrailDecoder):
    """The default edit, with the length of the residual stream unchanged."""

    hidden: Tensor

    def forward(self, activations: Tensor, where: Tensor) -> Tensor:
        h = self.hidden.float()
        edited = h + super().forward(activations, where)
        kept = edited * (h.norm(dim=-1, keepdim=True) / edited.norm(dim=-1, keepdim=True)) - h
        return kept.where(where.any(dim=-1, keepdim=True), 0.0)


class FallingDose(GuardrailDecoder):
    """The default edit times the share of hot tokens among the last ones."""

    def forward(self, activations: Tensor, where: Tensor) -> Tensor:
        hot = (activations > 0).any(dim=-1).float().cumsum(dim=1)
        earlier = torch.cat([hot.new_zeros(len(hot), WINDOW), hot], dim=1)[:, : hot.shape[1]]
        share = (hot - earlier) / WINDOW
        return super().forward(activations, where) * (share / FULL).clamp(max=1)[..., None]


DECODERS = {"norm kept": NormKept, "falling dose": FallingDose}


def options_of(edit: str, strength: float) -> dict[str, Any]:
    """Options of `fit_guardrail`."""
    if edit == "to zero":
        return {"num_features": int(strength), "ratio_percentile": TO_ZERO[int(strength)], "clamp_value": 0.0}
    refusing = {"action": "refuse", "refusal": REFUSAL} if edit == "refusal" else {}
    return {"clamp_unit": "residual", "clamp_scale": strength, **refusing}


@contextmanager
def edited(setting: Setting, edit: str, strength: float) -> Iterator[nn.Module]:
    """The guarded model with this edit. Every token runs by torch's operators, whose edit is the decoder's."""
    usual, kernels = setting.model.generation_config.use_cache, layer_module.step_for
    with fitted(setting, options_of(edit, strength)) as guarded:
        guard = guard_layers(guarded)[0]
        if edit in DECODERS:
            encoder, decoder = guard.sae_guardrail_encoder["default"], guard.sae_guardrail_decoder["default"]
            other = DECODERS[edit](decoder.weight.shape[1], decoder.weight.shape[0])
            other.load_state_dict(decoder.state_dict())
            guard.sae_guardrail_decoder["default"] = other
            encoder.register_forward_pre_hook(lambda _, given: setattr(other, "hidden", given[0]))
        setting.model.generation_config.use_cache = False
        layer_module.step_for = lambda *given: None
        try:
            yield guarded
        finally:
            setting.model.generation_config.use_cache, layer_module.step_for = usual, kernels


def measure(setting: Setting, edit: str, base: dict[str, Any], front: Front) -> dict[str, Any]:
    """An edit: its strengths on validation texts, the chosen one, and that one's test."""
    found: dict[str, Any] = {"topic": setting.texts.name, "edit": edit, "refused": {}}
    candidates = []
    for strength in TO_ZERO if edit == "to zero" else RESIDUAL_DOSES:
        try:
            with cached_front(setting.model, setting.layer, front), edited(setting, edit, strength) as guarded:
                candidates.append(Candidate.of(strength, *(c for c, _ in validation_changes(setting, guarded, base))))
        except GuardrailError as error:
            found["refused"][str(strength)] = str(error)
    best = choose(candidates)
    found |= {"candidates": [c.to_dict() for c in candidates], "within": best is not None}
    if not candidates:
        return found
    found["strength"] = (best or min(candidates, key=lambda c: c.damage)).strength
    with edited(setting, edit, found["strength"]) as guarded:
        with cached_front(setting.model, setting.layer, front):
            for part in SIDES:
                before = torch.tensor(base[part], dtype=torch.float64)
                losses, fired = guarded_losses(setting, guarded, getattr(setting.texts, part), before)
                found[part] = compared(losses, base[part], fired)
            for part in ("choices", "other_choices"):
                right = right_choices(setting, guarded, getattr(setting.texts, part))
                found[part] = choices_compared(right, base[part])
        prompts = prompts_of(setting, guarded)
        found["said"] = continuations(setting, guarded, prompts)
        if setting.texts.name == DEMO:
            found["recall"] = recalled(setting, guarded)
    return found


def prompts_of(setting: Setting, guarded: nn.Module) -> list[str]:
    """The first halves of the topic's test texts on which the gate fires."""
    halves = [" ".join(words[: len(words) // 2]) for text in setting.texts.test if len(words := text.split()) > 7]
    fired = gate_fires(setting, guarded, halves).tolist()
    return [half for half, fires in zip(halves, fired, strict=True) if fires][:CONTINUED]


def recalled(setting: Setting, model: nn.Module) -> dict[str, Any]:
    """The share of the demo's facts that are completed rightly, by side."""
    facts = load_demo_texts().facts
    return {side: ask(model, setting.tokenizer, facts[side]).right.to_dict() for side in facts}


def continuations(setting: Setting, model: nn.Module, prompts: list[str]) -> dict[str, Any]:
    """Continuations with the bare model's loss on each and their repetition."""
    said = [
        text
        for i in range(0, len(prompts), AT_ONCE)
        for text in complete(model, setting.tokenizer, prompts[i : i + AT_ONCE], max_new_tokens=NEW)
    ]
    figures = [sense(setting, prompt, text) for prompt, text in zip(prompts, said, strict=True)]
    return {
        "loss": [round(loss, 4) for loss, _ in figures],
        "repeated": [round(share, 4) for _, share in figures],
        "gibberish": sum(loss > SENSELESS or share > REPEATED for loss, share in figures),
        "n": len(figures),
        "shown": [list(pair) for pair in zip(prompts[:SHOWN], said[:SHOWN], strict=True)],
    }


@torch.no_grad()
def sense(setting: Setting, prompt: str, said: str) -> tuple[float, float]:
    """The bare model's loss on the words after the prompt, nats per token, and the share of repeated triples."""
    start = setting.tokenizer(prompt)["input_ids"]
    words = setting.tokenizer(said, add_special_tokens=False)["input_ids"]
    if not words:
        return 0.0, 0.0
    logits = setting.model(torch.tensor([start + words])).logits[0, len(start) - 1 : -1]
    triples = [*zip(words, words[1:], words[2:], strict=False)]
    repeated = 1 - len({*triples}) / len(triples) if triples else 0.0
    return float(cross_entropy(logits.float(), torch.tensor(words))), repeated


def demo_texts(size: Size) -> Texts:
    """The demo's texts, split as those of other topics."""
    texts = load_demo_texts()
    other, test = texts.retain, texts.heldout
    return Texts(
        DEMO,
        fit=texts.forget[: -size.validation],
        other_fit=other[: -size.other_validation],
        validation=texts.forget[-size.validation :],
        other_validation=other[-size.other_validation :],
        test=test["forget"][: size.test],
        other_test=test["retain"][: size.other_test],
    )


def all_settings(args: argparse.Namespace) -> Iterator[Setting]:
    """The demo's topic, and those of the arguments."""
    model, tokenizer = load_model(args.model)
    sae, size = load_sae(args.sae, args.sae_subfolder), Size()
    yield Setting(model, tokenizer, sae, demo_texts(size), size, args.seed)
    yield from settings(args)


def run(args: argparse.Namespace) -> None:
    """The cells that are not there yet."""
    for setting in all_settings(args):
        front = Front()
        folder = args.results / setting.texts.name
        if not (folder / "bare.json").exists():
            with cached_front(setting.model, setting.layer, front):
                base = base_figures(setting)
            write(folder / "bare.json", base)
        base = json.loads((folder / "bare.json").read_text())
        for edit in EDITS:
            path = folder / f"{edit.replace(' ', '_')}.json"
            if not path.exists():
                write(path, measure(setting, edit, base, front))
                gc.collect()
        path = folder / "bare_said.json"
        if not path.exists():
            with fitted(setting, {}) as guarded:
                prompts = prompts_of(setting, guarded)
            found = {"topic": setting.texts.name, "edit": BARE, "said": continuations(setting, setting.model, prompts)}
            if setting.texts.name == DEMO:
                found["recall"] = recalled(setting, setting.model)
            write(path, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start, summary = (commands.add_parser(name) for name in ("run", "summary"))
    add_setting_arguments(start)
    for command in (start, summary):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per topic and edit")
    args = parser.parse_args()
    if args.command == "run":
        torch.set_num_threads(1)
        run(args)
        return
    cells = [json.loads(path.read_text()) for path in sorted(args.results.glob("*/*.json")) if path.stem != "bare"]
    (RESULTS / "edits.json").write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
