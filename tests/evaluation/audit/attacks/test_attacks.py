"""Attacks: what they do to the model, what they leave as it was, and whether they find what is there to be found."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_tokenizer
from zoo import BOS, base_model, token_ids

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.audit.attacks import (
    direction_attack,
    known_direction,
    relearning_attack,
    rounding_attack,
    split_subjects,
    unnamed_recall,
)
from sae_unlearn.evaluation.audit.attacks.direction import adding
from sae_unlearn.evaluation.audit.attacks.rounding import round_weights
from sae_unlearn.evaluation.audit.attacks.unnamed import naming_prompts
from sae_unlearn.evaluation.metrics.recall import Fact, complete, recall


IDS = token_ids(3, 7)
LAYER = 1


def tuned_model(name="llama"):
    targets = "all-linear"
    return get_peft_model(base_model(name), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits.clone()


@torch.no_grad()
def states(model, ids=IDS):
    """What the next layer is given: transformers notes `hidden_states` before a later hook changes them."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen = []
    handle = bare.model.layers[LAYER + 1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(ids)
    handle.remove()
    return seen[0].clone()


# --- rounding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rounding_is_on_merged_weights_and_leaves_the_model_alone(name):
    model = tuned_model(name)
    before, weights = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    points = rounding_attack(model, logits, bits=(16, 8, 3))
    assert [point.strength for point in points] == [16, 8, 3]
    off = [float((point.found - before).abs().max()) for point in points]
    assert off[0] < 1e-2 < off[2]
    assert off[0] < off[1] < off[2]
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "weight", "channel"), [("llama", "q_proj", 1), ("gpt2", "c_fc", 0)])
def test_rounded_weights_have_few_values_per_output_channel(name, weight, channel):
    model = base_model(name)
    head, embedding = model.get_output_embeddings().weight.clone(), model.get_input_embeddings().weight.clone()
    exact = copy.deepcopy(model)
    round_weights(model, 4)
    found = next(m.weight for n, m in model.named_modules() if n.endswith(weight))
    before = next(m.weight for n, m in exact.named_modules() if n.endswith(weight))
    for row, original in zip(found.movedim(channel, -1), before.movedim(channel, -1), strict=True):
        assert len(row.unique()) <= 15
        step = original.abs().max() / 7
        assert (row - original).abs().max() <= step / 2 + 1e-6
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_bits_that_make_no_sense_are_refused():
    with pytest.raises(UnlearnError, match="bits=1: "):
        rounding_attack(base_model("llama"), logits, bits=(1,))


# --- direction ---------------------------------------------------------------------------------------------------


def test_the_direction_is_added_at_the_layer_and_taken_off_again():
    model = tuned_model()
    before, direction = states(model), torch.randn(32)
    points = direction_attack(model, LAYER, direction, states, strengths=(0.0, 1.0, 2.0))
    for point in points:
        torch.testing.assert_close(point.found, before + point.strength * direction)
    assert torch.equal(states(model), before)


def test_the_direction_undoes_an_adapter_that_only_turned_it():
    """A 'tuned' model that is the base with the direction taken off at the layer: strength 1 puts everything back."""
    model, direction = base_model("llama"), torch.randn(32)
    whole = logits(model)
    with adding(model, LAYER, -direction):
        assert (logits(model) - whole).abs().max() > 0.01
        points = direction_attack(model, LAYER, direction, logits, strengths=(1.0,))
    torch.testing.assert_close(points[0].found, whole, atol=1e-5, rtol=1e-5)


def test_the_direction_only_at_names():
    model, tokenizer, direction = base_model("llama"), tiny_tokenizer(), torch.ones(32)
    ids = torch.tensor([[BOS, 3, 20, 21, 4], [BOS, 20, 3, 21, 30]])
    before = states(model, ids=ids)
    [point] = direction_attack(
        model, LAYER, direction, lambda m: states(m, ids=ids), [1.0], ["w20 w21", "w30"], tokenizer
    )
    where = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])[..., None]
    torch.testing.assert_close(point.found, before + where)


def test_the_direction_at_names_reaches_generated_text_through_the_cache():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    direction = 20 * torch.randn(32)
    plain = complete(model, tokenizer, ["w3 w20"], max_new_tokens=6)
    attack = [
        complete(model, tokenizer, ["w3 w20"], max_new_tokens=6),
        complete(model, tokenizer, ["w3 w22"], max_new_tokens=6),
    ]
    points = direction_attack(
        model,
        0,
        direction,
        lambda m: [
            complete(m, tokenizer, ["w3 w20"], max_new_tokens=6),
            complete(m, tokenizer, ["w3 w22"], max_new_tokens=6),
        ],
        [0.0, 1.0],
        ["w20"],
        tokenizer,
    )
    assert points[0].found == attack
    assert points[1].found[0] != plain
    assert points[1].found[1] == attack[1]


def test_names_need_a_tokenizer():
    with pytest.raises(UnlearnError, match="tokenizer=None"):
        direction_attack(base_model("llama"), LAYER, torch.ones(32), logits, names=["w3"])


def test_known_direction_is_a_difference_of_means():
    known, unknown = torch.randn(5, 3, 8), torch.randn(7, 3, 8)
    expected = known.flatten(0, 1).mean(0) - unknown.flatten(0, 1).mean(0)
    torch.testing.assert_close(known_direction(known, unknown), expected)


# --- relearning --------------------------------------------------------------------------------------------------

FACTS = [Fact(f"w3 w{i}", (f"w{40 + i % 2}",), f"w{i}") for i in range(20, 28)]


@pytest.mark.parametrize("given", [{"steps": ()}, {"steps": (0, -1)}, {"steps": (0, 1.5)}, {"rank": 0}])
def test_relearning_refuses_steps_and_sizes_out_of_range_by_name(given):
    with pytest.raises(UnlearnError, match=f"^{next(iter(given))}[:=]"):
        relearning_attack(base_model("llama"), tiny_tokenizer(), FACTS, lambda model: None, **given)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [True, False])
def test_relearning_learns_what_it_is_taught_and_leaves_the_model_alone(wrapped):
    model, tokenizer = tuned_model() if wrapped else base_model("llama"), tiny_tokenizer()
    before, weights = logits(model), {k: v.clone() for k, v in model.state_dict().items()}

    def measure(student):
        assert not student.training
        return sum(r.right for r in recall(student, tokenizer, FACTS, max_new_tokens=1))

    points = relearning_attack(model, tokenizer, FACTS, measure, steps=(0, 60), learning_rate=1e-2, batch_size=8)
    assert [point.strength for point in points] == [0, 60]
    assert points[0].found <= 2
    assert points[1].found >= 7
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_step_zero_is_the_tuned_model_and_a_seed_is_a_run():
    model, tokenizer = tuned_model(), tiny_tokenizer()
    state = torch.get_rng_state()
    runs = [relearning_attack(model, tokenizer, FACTS, logits, steps=(3, 0), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(runs[0][0].found, logits(model), atol=1e-4, rtol=1e-4)
    assert torch.equal(runs[0][1].found, runs[1][1].found)
    assert not torch.equal(runs[0][1].found, runs[2][1].found)


def test_nothing_to_teach_is_refused():
    with pytest.raises(UnlearnError, match=r"^taught: .*got 0"):
        relearning_attack(base_model("llama"), tiny_tokenizer(), [], logits)


def test_no_subject_is_both_taught_and_measured():
    facts = [Fact(f"{template} w{i}", ("w5",), f"w{i}") for i in range(20, 30) for template in ("w3", "w4")]
    taught, measured = split_subjects(facts, 0.3, seed=1)
    assert (len(taught), len(measured)) == (6, 14)
    assert not {fact.subject for fact in taught} & {fact.subject for fact in measured}
    assert split_subjects(facts, 0.3, seed=1) == (taught, measured)
    with pytest.raises(UnlearnError, match=r"share=0\.01: "):
        split_subjects(facts, 0.01)
    with pytest.raises(UnlearnError, match="subject=''"):
        split_subjects([Fact("w3", ("w4",))])


# --- without the entity's name -----------------------------------------------------------------------------------


def test_prompts_without_the_name_are_asked():
    model, tokenizer = base_model("llama"), tiny_tokenizer()
    word = complete(model, tokenizer, ["w3 w4"], max_new_tokens=1)[0]
    counts = unnamed_recall(model, tokenizer, [Fact("w3 w4", (word,)), Fact("w5", ("nothing",))], ["w20"])
    assert (counts.right.value, counts.right.n) == (0.5, 2)


def test_a_prompt_that_names_the_entity_is_refused():
    facts = [Fact("w3 w4", ("w5",)), Fact("w3 W20", ("w5",))]
    with pytest.raises(UnlearnError, match=r"facts: .*'w3 W20' with 'w20'"):
        unnamed_recall(base_model("llama"), tiny_tokenizer(), facts, ["w20"])


@pytest.mark.parametrize(
    ("prompt", "named"),
    [("the capital of France", False), ("in PARIS,", True), ("Parisian", False), ("near São Paulo.", True)],
)
def test_names_are_whole_words_in_any_case(prompt, named):
    assert bool(naming_prompts([prompt], ["Paris", "são paulo"])) is named
