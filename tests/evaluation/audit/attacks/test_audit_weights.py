"""Attacks on weights and states where guardrails are on the model, and adapters taken off."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_topic import LAYER, tiny_parts, tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn import attach_guardrail, fit_guardrail, record_firings
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Fact, recall
from sae_unlearn.evaluation.audit.attacks import displacement, relearning_attack, removal_attack, rounding_attack
from sae_unlearn.evaluation.audit.attacks.direction import adding
from sae_unlearn.evaluation.audit.attacks.merged import base_copy, merged_copy
from sae_unlearn.guardrail import guard_layers


TEXTS = topic_texts("forget", 6, seed=5)
FACTS = [Fact(f"w3 w{i}", (f"w{40 + i % 2}",), f"w{i}") for i in range(20, 28)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, tokenizer, sae = tiny_parts()
    folder = tmp_path_factory.mktemp("guardrail")
    forget, retain = topic_texts("forget", 40), topic_texts("retain", 80)
    fit_guardrail(model, tokenizer, sae, forget, retain, progress=False).save_pretrained(folder)
    return folder


@pytest.fixture
def guarded(saved):
    return attach_guardrail(tiny_parts()[0], saved)


@torch.no_grad()
def logits(model):
    return torch.cat([model(torch.tensor([tiny_tokenizer()(text)["input_ids"]])).logits[0] for text in TEXTS])


def lora():
    return LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)


@pytest.mark.slow
def test_guardrails_are_on_the_copy(saved, guarded):
    twin = merged_copy(guarded)
    assert torch.equal(logits(twin), logits(guarded))
    assert torch.equal(logits(base_copy(guarded)), logits(tiny_parts()[0]))
    assert not guard_layers(base_copy(guarded))
    both = attach_guardrail(get_peft_model(tiny_parts()[0], lora()).eval(), saved, check_base=False)
    twin = merged_copy(both)
    torch.testing.assert_close(logits(twin), logits(both), atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in twin.named_modules())
    assert torch.equal(logits(base_copy(both)), logits(tiny_parts()[0]))


def test_rounding_leaves_the_guardrail_in_force(guarded):
    def fired(model):
        with record_firings(model) as firings:
            logits(model)
        return [firing.fired for firing in firings]

    assert True in fired(guarded)
    [point] = rounding_attack(guarded, fired, bits=(16,))
    assert point.found == fired(guarded)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_relearning_under_a_guardrail(guarded, full):
    tokenizer, before = tiny_tokenizer(), logits(guarded)
    weights = {name: value.clone() for name, value in guarded.state_dict().items()}

    def measure(student):
        assert guard_layers(student)
        assert not any(layer.disable_adapters for layer in guard_layers(student))
        return sum(one.right for one in recall(student, tokenizer, FACTS, max_new_tokens=1))

    rate = 3e-3 if full else 1e-2
    points = relearning_attack(
        guarded, tokenizer, FACTS, measure, steps=(0, 60), learning_rate=rate, batch_size=8, full=full
    )
    assert points[0].found <= 3
    assert points[1].found >= 6
    assert torch.equal(logits(guarded), before)
    assert all(torch.equal(value, weights[name]) for name, value in guarded.state_dict().items())


def test_full_relearning_trains_every_weight():
    model, changed = base_model("llama"), {}

    def measure(student):
        found = dict(student.named_parameters())
        changed.update({name: not torch.equal(value, found[name]) for name, value in model.named_parameters()})

    relearning_attack(model, tiny_tokenizer(), FACTS, measure, steps=(1,), learning_rate=1e-3, full=True)
    assert changed
    assert all(changed.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_relearning_of_a_model_in_16_bits_is_that_of_its_weights_in_32(saved, dtype):
    """In bfloat16 most steps would be lost in rounding, and in float16 AdamW divides by 0."""
    short = tiny_parts()[0].to(dtype)
    found = []
    for model in (short, copy.deepcopy(short).float()):
        guarded = attach_guardrail(model, saved, check_base=False)
        [point] = relearning_attack(guarded, tiny_tokenizer(), FACTS, logits, steps=(8,), full=True)
        found.append(point.found)
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert short.dtype == dtype


def test_the_displacement_is_what_the_adapter_took(guarded):
    """The guardrail's edits, averaged over the tokens that it edits: a direct reading of the layer."""
    tokenizer, seen = tiny_tokenizer(), {}
    for on in (True, False):
        rows = []
        handle = (
            guarded.get_base_model()
            .model.layers[LAYER]
            .register_forward_hook(
                lambda module, args, output, rows=rows: rows.append(output[0] if isinstance(output, tuple) else output)
            )
        )
        guarded.base_model.enable_adapter_layers() if on else guarded.base_model.disable_adapter_layers()
        logits(guarded)
        handle.remove()
        seen[on] = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])
    guarded.base_model.enable_adapter_layers()
    edits = seen[False] - seen[True]
    expected = edits[edits.abs().amax(dim=1) > 1e-4].mean(dim=0)
    for batch_size in (1, 4):
        found = displacement(guarded, tokenizer, TEXTS, LAYER, batch_size=batch_size)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_what_was_turned_is_found_by_comparing_with_the_base():
    model, base, direction = base_model("llama"), base_model("llama"), torch.randn(32)
    with adding(model, LAYER, -direction):
        found = displacement(model, tiny_tokenizer(), TEXTS, LAYER, base=base)
    torch.testing.assert_close(found, direction, atol=1e-4, rtol=1e-4)


def test_a_direction_that_is_not_there_is_said(guarded):
    with pytest.raises(UnlearnError, match="layer=0: "):
        displacement(guarded, tiny_tokenizer(), TEXTS, 0)
    with pytest.raises(UnlearnError, match=r"^prompts: .*got 0"):
        displacement(guarded, tiny_tokenizer(), [], LAYER)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["guardrail", "lora"])
def test_an_adapter_that_is_taken_off_leaves_the_base(kind, guarded):
    plain = logits(tiny_parts()[0])
    model = guarded if kind == "guardrail" else get_peft_model(tiny_parts()[0], lora()).eval()
    before = logits(model)
    assert not torch.equal(before, plain)
    [point] = removal_attack(model, logits)
    assert torch.equal(point.found, plain)
    assert torch.equal(logits(model), before)


def test_nothing_to_take_off_is_said(guarded):
    with pytest.raises(UnlearnError, match=r"base=None: .*LlamaForCausalLM"):
        removal_attack(base_model("llama"), logits)
    with guarded.disable_adapter(), pytest.raises(UnlearnError, match="base=None: "):
        removal_attack(guarded, logits)
