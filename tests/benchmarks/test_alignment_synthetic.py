"""The synthetic benchmark at a reduced size: its world is as it says, and every baseline forgets in it."""

import pytest
from peft import get_peft_model

from benchmarks.baselines import DamageBudget, encode, get_method, method_names, train_baseline
from benchmarks.synthetic.measures import entity_set, recall, recall_without_name_state
from benchmarks.synthetic.methods import lora, validation_batches
from benchmarks.synthetic.setting import SettingConfig, prepare
from benchmarks.synthetic.world import REFUSAL, World, WorldConfig
from sae_unlearn.alignment.entities import overlap
from sae_unlearn.errors import UnlearnError


OPTIONS = {
    "ga": (1e-3, {}),
    "grad_diff": (1e-3, {}),
    "npo": (1e-3, {}),
    "rmu": (3e-3, {"layer": 0, "steering": 4.0}),
    "refusal": (3e-3, {"refusals": (REFUSAL,)}),
}


@pytest.fixture(scope="module")
def setting(one_thread):
    return prepare(SettingConfig.small())


def right(model, setting, people):
    return recall(model, setting.tokenizer, setting.world.facts(people))["right"]


def test_a_seed_gives_one_world_and_another_seed_another():
    def first(seed):
        world = World(WorldConfig(seed=seed))
        stream = world.stream(seed)
        return world.people, [next(stream) for _ in range(50)]

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_the_parts_of_the_people_are_disjoint_and_the_never_seen_are_in_no_sentence():
    world = World(WorldConfig())
    parts = [world.targets, world.known, world.validation, world.neighbors, world.unknown, world.unknown_test]
    sets = [entity_set(part) for part in parts]
    assert all(not overlap(a, b) for i, a in enumerate(sets) for b in sets[:i])
    assert {person.tier for part in parts[:4] for person in part} == {"frequent"}
    stream = world.stream(0)
    read = {next(stream).name for _ in range(20_000)}
    assert not read & {person.name for person in world.people["never"]}
    assert {person.name for person in world.people["frequent"]} < read


def test_every_word_is_one_token_that_the_tokenizer_knows():
    world = World(WorldConfig())
    tokenizer, stream = world.tokenizer(), world.stream(0)
    for _ in range(2000):
        row = next(stream)
        ids = tokenizer(row.text)["input_ids"]
        assert len(ids) == len(row.text.split()) + 1
        assert tokenizer.unk_token_id not in ids


def test_only_answers_are_scored_in_questions_and_all_tokens_in_text():
    world = World(WorldConfig())
    tokenizer = world.tokenizer()
    fact, text = world.facts(world.targets)[0], next(row for row in world.unrelated(50, 0) if not row.answer)
    batch = encode(tokenizer, [fact, text])
    words = tokenizer.convert_ids_to_tokens(batch.targets)
    assert words == [fact.answer, *text.prompt.split()]
    assert batch.row.tolist() == [0] + [1] * len(text.prompt.split())


@pytest.mark.slow
def test_what_is_frequent_is_known_and_what_was_never_read_is_guessed(setting):
    world = setting.world
    for people in (world.targets, world.known, world.neighbors):
        assert right(setting.base, setting, people) > 0.6
    assert right(setting.base, setting, world.unknown_test) < 0.3
    assert right(setting.gold, setting, world.targets) < 0.3
    assert right(setting.gold, setting, world.neighbors) > 0.6


@pytest.mark.slow
def test_what_is_known_of_a_target_is_read_at_its_name(setting):
    left = recall_without_name_state(setting.base, setting.world, setting.tokenizer, setting.sae.layer)
    assert left < right(setting.base, setting, setting.world.targets) - 0.2


@pytest.mark.slow
def test_the_autoencoder_reconstructs(setting):
    assert setting.facts["sae_explained_variance"] > 0.85
    assert setting.facts["sae_active_latents"] == pytest.approx(setting.config.sae.k, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
def test_every_baseline_reduces_the_recall_of_targets_and_leaves_the_base_model(name, setting):
    world, tokenizer = setting.world, setting.tokenizer
    learning_rate, options = OPTIONS[name]
    model = get_peft_model(setting.fresh_model(), lora(setting.sae.layer))
    budget = DamageBudget(model, validation_batches(world, tokenizer), budget=10.0, every=10)
    train_baseline(
        model,
        tokenizer,
        get_method(name, **options),
        world.facts(world.targets),
        world.facts(world.known) + world.unrelated(50, seed=1),
        steps=30,
        learning_rate=learning_rate,
        on_step=budget,
    )
    before = right(setting.base, setting, world.targets)
    assert right(model, setting, world.targets) < before - 0.2
    with model.disable_adapter():
        assert right(model, setting, world.targets) == before
    assert [step for step, _ in budget.curve] == [0, 10, 20, 30]
    assert budget.curve[0][1] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_last_state_within_the_budget_comes_back(setting):
    world, tokenizer = setting.world, setting.tokenizer
    model = get_peft_model(setting.fresh_model(), lora(setting.sae.layer))
    budget = DamageBudget(model, validation_batches(world, tokenizer), budget=0.02, every=5)
    rows = world.facts(world.targets)
    train_baseline(model, tokenizer, get_method("ga"), rows, world.facts(world.known), 60, 3e-3, on_step=budget)
    assert budget.step < budget.curve[-1][0], "ends early, and not in the state that is kept"
    assert budget.curve[-1][1] > budget.budget >= budget.damage
    budget.restore(model)
    assert budget.measure(model) == pytest.approx(budget.damage, rel=1e-4)


def test_an_unknown_baseline_is_named_with_what_was_perhaps_meant():
    with pytest.raises(UnlearnError, match=r"^name=.*'npo'"):
        get_method("npoo")
