"""`init="closed_form"` in the trainer: solved, saved and loaded, refined, resumed, and refused by name."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_entities import parts, settings
from zoo import token_ids

from sae_unlearn.alignment import AlignmentError, SAEAlignmentTrainer, Solution
from sae_unlearn.alignment.closed_form import solve
from sae_unlearn.alignment.closed_form.projections import Change
from sae_unlearn.alignment.metrics import Way
from sae_unlearn.backbone.layers import base_model_of


def trainer(folder, name="llama", **options):
    """A trainer with a budget that the tiny model can keep."""
    given = parts(name)
    own = {k: options.pop(k) for k in list(options) if k in (*given, "peft_config")}
    options = {"init": "closed_form", "max_steps": -1, "min_separation": 0.0, "retain_budget": 0.02, **options}
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **{**given, **own})


def lora(it):
    return {n: p.detach().clone() for n, p in it.model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_it_is_solved_within_the_budget_and_takes_no_step(tmp_path, name):
    it = trainer(tmp_path, name)
    before = it.evaluate()
    assert before["eval_way_left"] == pytest.approx(1, abs=1e-4)
    assert before["eval_way_error"] == pytest.approx(1, abs=1e-4)
    it.train()
    after = it.evaluate()
    assert it.state.global_step == 0
    assert isinstance(it.solution, Solution)
    assert 0 < it.solution.damage <= 0.02
    assert after["eval_way_left"] < 0.7
    assert any(log.get("solve_damage") == it.solution.damage for log in it.state.log_history)
    on = {n.split(".lora_")[0].rpartition(".")[2] for n in lora(it)}
    assert on <= {"down_proj", "c_proj"}
    assert not any("attn" in n for n in lora(it))


def test_what_is_saved_is_what_was_solved(tmp_path):
    it = trainer(tmp_path / "out", "gemma3")
    it.train()
    it.save_model(str(tmp_path / "saved"))
    base_model = parts("gemma3")["model"]
    loaded = PeftModel.from_pretrained(copy.deepcopy(base_model), str(tmp_path / "saved")).eval()
    ids = token_ids(3, 9)
    with torch.no_grad():
        expected, base = it.model.eval()(input_ids=ids).logits, base_model(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-5)
        merged = copy.deepcopy(loaded).merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    assert float((expected - base).abs().max()) > 1e-3
    assert "Solved for in closed form" in (tmp_path / "saved" / "README.md").read_text()


def test_the_lora_has_the_damage_that_was_measured(tmp_path):
    from sae_unlearn.alignment.closed_form.damage import Damage
    from sae_unlearn.alignment.closed_form.stay import damage_rows

    it = trainer(tmp_path, solve_lam=2.0)
    judged = damage_rows(it.setting.plan, it.args.retain_positions, it.args.seed)
    damage = Damage(base_model_of(it.model), judged, 32)
    it.train()
    assert damage() == pytest.approx(it.solution.damage, rel=1e-3)


def test_a_larger_budget_goes_further(tmp_path):
    found = []
    for budget in (0.001, 0.02):
        it = trainer(tmp_path, retain_budget=budget)
        it.train()
        assert it.solution.damage <= budget
        found.append(it.solution)
    assert found[0].lam > found[1].lam
    assert found[0].way.error > found[1].way.error


def test_settings_of_the_solve_are_followed(tmp_path):
    options = {"solve_layers": [1], "solve_sweeps": 1, "solve_lam": 3.0, "solve_gamma": 0.2}
    it = trainer(tmp_path, **options)
    it.train()
    assert (list(it.solution.changes), it.solution.lam, it.solution.gamma) == ([1], 3.0, 0.2)
    twice = trainer(tmp_path, **options | {"solve_sweeps": 2})
    twice.train()
    assert twice.solution.way.error < it.solution.way.error


def test_training_goes_on_from_the_solution_for_max_steps(tmp_path):
    solved = trainer(tmp_path / "a", solve_lam=2.0)
    solved.train()
    options = {"solve_lam": 2.0, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1e-6}
    refined = trainer(tmp_path / "b", **options)
    refined.train()
    assert refined.state.global_step == 2
    a, b = lora(solved), lora(refined)
    difference = max(float((a[n] - b[n]).abs().max()) for n in a)
    assert 0 < difference < 1e-4


def test_a_resumed_run_does_not_solve_again(tmp_path):
    options = {"solve_lam": 2.0, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    whole = trainer(tmp_path / "whole", **options, save_steps=2)
    whole.train()
    resumed = trainer(tmp_path / "whole", **options, save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.solution is None
    a, b = lora(whole), lora(resumed)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_second_run_reads_the_covariances_and_finds_the_same(tmp_path):
    found = []
    for _ in range(2):
        it = trainer(tmp_path / "out", solve_lam=2.0, covariance_cache=str(tmp_path / "cache"))
        it.train()
        found.append(lora(it))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


class Int8Linear(torch.nn.Linear):
    """A linear layer that stores its weight as integers, one scale for each output."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        rounded = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(rounded, requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale).T


def test_a_quantized_base_is_solved_for_as_its_dequantized_weights_are(tmp_path):
    found = []
    for kind in ("quantized", "dequantized"):
        model = parts()["model"]
        for layer in model.model.layers:
            stored = Int8Linear(layer.mlp.down_proj)
            if kind == "quantized":
                layer.mlp.down_proj = stored
            else:
                layer.mlp.down_proj.weight.data = stored.weight.float() * stored.scale
        it = trainer(tmp_path / kind, model=model, solve_lam=2.0)
        it.train()
        found.append(lora(it))
        if kind == "quantized":
            kept = model.model.layers[0].mlp.down_proj.base_layer.weight
            assert kept.dtype == torch.int8
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], atol=1e-5, rtol=1e-3)


def test_what_cannot_be_solved_is_refused_by_name(tmp_path):
    with pytest.raises(AlignmentError, match=r"layer 0.*MixtralDecoderLayer"):
        trainer(tmp_path, "mixtral")
    with pytest.raises(AlignmentError, match=r"^solve_layers=\[3\]: .*1"):
        trainer(tmp_path, solve_layers=[3])
    elsewhere = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(AlignmentError, match=r"model\.layers\.0\.mlp\.down_proj, got none"):
        trainer(tmp_path, peft_config=elsewhere).train()
    dora = LoraConfig(target_modules=["down_proj"], use_dora=True, task_type="CAUSAL_LM")
    with pytest.raises(AlignmentError, match="expected use_dora=False"):
        trainer(tmp_path, peft_config=dora).train()


def test_a_budget_that_nothing_keeps_is_refused_and_the_tries_are_shown():
    change = {0: Change(torch.zeros(1, 2), torch.zeros(1, 2))}

    def attempt(lam):
        return Solution(change, lam, 0.0, 1 / lam + 0.05, Way(0.5, 0.5), 1.0, [])

    with pytest.raises(AlignmentError, match=r"^retain_budget=0\.03: .* lam "):
        solve._within(0.03, attempt)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_search_spends_the_budget_in_few_tries(power):
    def attempt(lam):
        return Solution({}, lam, 0.0, 3 / lam**power, Way(0.5, lam / (1 + lam)), 1.0, [])

    found = solve._within(0.03, attempt)
    assert solve._SPENT * 0.03 <= found.damage <= 0.03
    assert len(found.tried) <= 7


def test_the_search_spends_no_damage_that_brings_the_targets_no_nearer():
    def attempt(lam):
        return Solution({}, lam, 0.0, 0.02 * (20 / lam) ** 0.1, Way(0.1, 0.3), 1.0, [])

    found = solve._within(0.03, attempt)
    assert len(found.tried) == 2
    assert found.lam == max(lam for lam, _ in found.tried)


def test_a_solution_that_moves_little_is_warned_of(tmp_path, caplog):
    trainer(tmp_path, solve_lam=1e6).train()
    assert "of the way is left" in caplog.text


def test_a_rank_that_holds_little_of_the_solution_is_warned_of(tmp_path, caplog):
    given = parts("llama")
    config = LoraConfig(r=1, target_modules=["down_proj"], layers_to_transform=[0], task_type="CAUSAL_LM")
    args = settings(tmp_path, init="closed_form", max_steps=-1, min_separation=0.0, solve_layers=[0], solve_lam=1.0)
    it = SAEAlignmentTrainer(args=args, peft_config=config, **given)
    it.train()
    assert it.solution.energy < 0.9
    assert "rank of 1 holds" in caplog.text


def test_a_trained_lora_is_not_overwritten(tmp_path):
    given = parts("llama")
    config = LoraConfig(target_modules=["down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    given["model"] = get_peft_model(given["model"], config)
    it = SAEAlignmentTrainer(args=settings(tmp_path, init="closed_form", max_steps=-1, min_separation=0.0), **given)
    untouched = lora(it)
    with pytest.raises(AlignmentError, match=r"^init=.*model\.layers\.0\.mlp\.down_proj"):
        it.train()
    assert all(torch.equal(untouched[n], p) for n, p in lora(it).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "svd"}, "init='svd'"),
        ({"solve_sweeps": 0}, "solve_sweeps=0"),
        ({"solve_lam": 0.0}, "solve_lam=0.0"),
        ({"solve_gamma": 2.0}, "solve_gamma=2.0"),
        ({"solve_layers": []}, "solve_layers="),
        ({"short_prompts": "one text"}, "short_prompts"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, options, message):
    with pytest.raises(AlignmentError, match=message):
        settings(tmp_path, **{"short_prompts": [], **options})
