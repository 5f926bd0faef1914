"""The trainer, on a tiny model: what a user of `Trainer` expects, and that only what the loss needs is computed."""

import copy
import logging
import math
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_entities import entities, parts, settings
from transformers import AutoModelForCausalLM, EarlyStoppingCallback

from sae_unlearn.alignment import AlignmentError, Entity, EntitySet, SAEAlignmentTrainer
from sae_unlearn.alignment.callbacks import RetainBudgetCallback
from sae_unlearn.backbone import checkpointing
from sae_unlearn.backbone.checkpointing import HOOKS_OUTSIDE
from sae_unlearn.backbone.layers import find_decoder_layers


def trainer(folder, name="llama", **options) -> SAEAlignmentTrainer:
    """A trainer on the tiny parts; options of the settings, and arguments of the trainer, by their names."""
    given = parts(name)
    own = {k: options.pop(k) for k in list(options) if k in (*given, "peft_config", "eval_dataset", "callbacks")}
    torch.manual_seed(0)
    return SAEAlignmentTrainer(args=settings(folder, **options), **{**given, **own})


def without_attributes(given) -> EntitySet:
    return EntitySet([Entity(one.entity, one.entity_type) for one in given])


def lora_weights(it) -> dict[str, torch.Tensor]:
    model = it.model if isinstance(it, SAEAlignmentTrainer) else it
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def largest_difference(a, b) -> float:
    assert a.keys() == b.keys()
    assert a
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def test_training_brings_targets_to_the_unknown_and_every_part_is_logged(tmp_path):
    it = trainer(tmp_path, max_steps=40, logging_steps=10)
    before = it.evaluate()
    it.train()
    after = it.evaluate()
    assert after["eval_known_auc"] < before["eval_known_auc"]
    assert after["eval_toward"] < before["eval_toward"]
    assert after["eval_variance_ratio"] > 0.5
    assert max(before["eval_mse"], before["eval_kl"]) < 1e-10  # not quite 0: batches of other shapes round otherwise
    assert after["eval_kl"] > 1e-6
    logs = [log for log in it.state.log_history if "loss" in log]
    assert len(logs) == 4
    assert all({"toward", "away", "mse", "kl", "grad_norm"} <= log.keys() for log in logs)
    for log in logs:  # the logged loss is the weighted sum of its logged parts
        assert log["loss"] == pytest.approx(log["toward"] + 0.5 * log["away"] + 0.5 * log["mse"] + log["kl"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("toward", "away"), [("centroid", "repel"), ("cosine", "none"), ("mmd", "triplet")])
def test_every_kind_of_loss_trains(tmp_path, toward, away):
    it = trainer(tmp_path, toward=toward, away=away, max_steps=20, logging_steps=5)
    it.train()
    logs = [log["toward"] for log in it.state.log_history if "toward" in log]
    assert logs[-1] < 0.9 * logs[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3", "opt", "gpt_neox", "falcon_h1"])
def test_other_architectures_train(tmp_path, name):
    hybrid = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if name == "falcon_h1" else None
    it = trainer(tmp_path, name, max_steps=2, min_separation=0.0, peft_config=hybrid)
    untouched = lora_weights(it)
    it.train()
    assert largest_difference(untouched, lora_weights(it)) > 0


@pytest.mark.slow
def test_without_an_sae_the_same_loss_is_taken_on_hidden_states(tmp_path):
    it = trainer(tmp_path, sae=None, layer=1, max_steps=10)
    assert it.latents is None
    assert it.setting.codes.shape[1] == 32
    before = it.evaluate()["eval_toward"]
    it.train()
    assert it.evaluate()["eval_toward"] < before


@pytest.mark.slow
def test_accumulation_gives_what_one_large_batch_gives(tmp_path):
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        it = trainer(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
        )
        it.train()
        weights.append((lora_weights(it), [log["loss"] for log in it.state.log_history if "loss" in log]))
    assert largest_difference(weights[0][0], weights[1][0]) < 1e-6
    assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "cut", **options).train()
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert largest_difference(lora_weights(whole), lora_weights(resumed)) == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    weights = []
    for seed in (1, 1, 2):
        it = trainer(tmp_path, seed=seed)
        it.train()
        weights.append(lora_weights(it))
    assert largest_difference(weights[0], weights[1]) == 0 < largest_difference(weights[0], weights[2])


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_weights(tmp_path, reentrant):
    weights = []
    for options in (
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        if reentrant and options and not HOOKS_OUTSIDE:
            with pytest.raises(AlignmentError, match=r"^use_reentrant=True: expected transformers >= 5\.23"):
                trainer(tmp_path, optim="sgd", learning_rate=0.1, **options)
            return
        it = trainer(tmp_path, optim="sgd", learning_rate=0.1, **options)
        untouched = lora_weights(it)
        it.train()
        weights.append(lora_weights(it))
        assert largest_difference(untouched, weights[-1]) > 0
    assert largest_difference(*weights) < 1e-6


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_that_let_no_gradient_out_of_a_hook_are_refused_at_the_first_step(tmp_path, reentrant, monkeypatch):
    """Switched on by hand, and by a class of layers that checkpoints its `__call__`, as before transformers 5.23."""
    monkeypatch.setattr(checkpointing, "HOOKS_OUTSIDE", False)
    it = trainer(tmp_path, max_steps=1)
    it._bare.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        with pytest.raises(AlignmentError, match=r"^use_reentrant=True: expected transformers"):
            it.train()
    else:
        it.train()


def test_an_adapter_that_receives_no_gradient_is_refused_at_the_first_step(tmp_path):
    above = LoraConfig(target_modules=["q_proj"], layers_to_transform=[3], task_type="CAUSAL_LM")
    with pytest.raises(AlignmentError, match="peft_config: expected a gradient"):
        trainer(tmp_path, peft_config=above, kl_weight=0.0).train()


@pytest.mark.slow
def test_bfloat16_autocast_trains(tmp_path):
    it = trainer(tmp_path, bf16=True, max_steps=20)
    before = it.evaluate()["eval_toward"]
    it.train()
    assert it.evaluate()["eval_toward"] < before
    assert all(math.isfinite(log["loss"]) for log in it.state.log_history if "loss" in log)


def test_references_and_base_weights_do_not_move(tmp_path):
    it = trainer(tmp_path)
    kept = copy.deepcopy((it.setting.states, it.setting.codes, it.setting.statistics, it.setting.code.state_dict()))
    base = {n: p.detach().clone() for n, p in it.model.named_parameters() if "lora_" not in n}
    it.train()
    for old, new in zip(kept[0], it.setting.states, strict=True):
        assert torch.equal(old, new)
    assert torch.equal(kept[1], it.setting.codes)
    assert all(torch.equal(a, b) for a, b in zip(kept[2], it.setting.statistics, strict=True))
    assert all(torch.equal(p, base[n]) for n, p in it.model.named_parameters() if n in base)
    fresh = trainer(tmp_path, model=it.model)  # references of a tuned model are those of its base
    assert torch.equal(fresh.setting.states.h, it.setting.states.h)


@pytest.mark.slow
def test_blocks_past_the_layer_run_for_retain_rows_alone(tmp_path):
    for kl_weight, runs in ((1.0, 2), (0.0, 0)):  # base and tuned
        it = trainer(tmp_path, kl_weight=kl_weight, max_steps=1)
        layers = find_decoder_layers(it.model.get_base_model()).layers
        calls = [0] * len(layers)
        for i, layer in enumerate(layers):

            def count(*_, i=i, calls=calls):
                calls[i] += 1

            layer.register_forward_pre_hook(count)
        it.train()
        assert calls == [runs + 1, runs + 1, runs, runs]


@pytest.mark.slow
def test_the_saved_adapter_is_a_plain_lora_that_loads_without_this_package_and_merges(tmp_path):
    it = trainer(tmp_path / "out", max_steps=6, save_strategy="steps", save_steps=3)
    it.train()
    it.save_model(tmp_path / "saved")
    it.model.get_base_model()
    parts()["model"].save_pretrained(tmp_path / "base")
    ids = torch.tensor([[1, 5, 6, 7]])
    expected = it.model.eval()(ids).logits
    code = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "saved")!r}).eval()
ids = torch.tensor([[1, 5, 6, 7]])
out = model(ids).logits
merged = model.merge_and_unload()(ids).logits
assert "sae_unlearn" not in sys.modules
assert (out - merged).abs().max() < 1e-5
torch.save(out, {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected.detach())
    assert {p.name for p in (tmp_path / "saved").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [p for p in (tmp_path / "saved").iterdir() if "sae" in p.name]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    checkpoint = PeftModel.from_pretrained(base, str(tmp_path / "out" / "checkpoint-6"))
    assert largest_difference(lora_weights(it), lora_weights(checkpoint)) == 0


@pytest.mark.slow
def test_training_stops_over_the_retain_budget_and_the_best_model_within_it_is_kept(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 60, "kl_weight": 0.0001, "learning_rate": 3e-2}
    free = trainer(tmp_path / "free", **options)
    free.train()
    kls = [log["eval_kl"] for log in free.state.log_history if "eval_kl" in log]
    budget = sorted(kls)[len(kls) // 2]
    it = trainer(
        tmp_path / "held",
        retain_budget=budget,
        load_best_model_at_end=True,
        metric_for_best_model="budget_loss",
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    it.train()
    assert it.state.global_step < 60
    assert it.evaluate()["eval_kl"] <= budget
    assert any(log.get("eval_budget_loss") == math.inf for log in it.state.log_history)


def test_a_budget_that_is_never_measured_is_refused(tmp_path):
    with pytest.raises(AlignmentError, match="eval_strategy"):
        settings(tmp_path, retain_budget=0.1)
    measured = {"retain_budget": 0.1, "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(AlignmentError, match=r"retain_budget=0.1: expected kl_weight > 0"):
        settings(tmp_path, kl_weight=0.0, **measured)
    with pytest.raises(AlignmentError, match=r"retain_budget=0.1: expected retain rows"):
        trainer(
            tmp_path, known=without_attributes(entities("known", 20, seed=3)), retain_dataset=["w40 w41"], **measured
        )


@pytest.mark.slow
def test_nothing_to_hold_predictions_on_is_refused_and_kl_of_no_rows_is_not_told(tmp_path):
    known = without_attributes(parts()["known"])
    with pytest.raises(AlignmentError, match="kl_weight=1: "):
        trainer(tmp_path, known=known, retain_dataset=None)
    assert "eval_kl" not in trainer(tmp_path, known=known, retain_dataset=None, kl_weight=0.0).evaluate()
    it = trainer(tmp_path, known=known, retain_dataset=["w40 w41 w42"], max_steps=1)  # nothing is left to judge by
    found = it.evaluate()
    assert "eval_kl" not in found
    assert found["eval_loss"] == pytest.approx(
        found["eval_toward"] + 0.5 * found["eval_away"] + 0.5 * found["eval_mse"], rel=1e-5
    )
    it.train()
    assert any("kl" in log for log in it.state.log_history)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_of_the_base_is_no_change_of_it(tmp_path, checkpointing):
    model = parts("gpt2")["model"]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    lora = LoraConfig(lora_dropout=0.3, target_modules=["c_attn"], task_type="CAUSAL_LM")
    it = trainer(
        tmp_path,
        "gpt2",
        model=model,
        peft_config=lora,
        max_steps=1,
        min_separation=0.0,
        gradient_checkpointing=checkpointing,
    )
    it.train()
    first = it.state.log_history[0]
    assert max(first["kl"], first["mse"]) < 1e-9 < first["grad_norm"]
    own = [m.training for n, m in it.model.named_modules() if "lora_dropout" in n and isinstance(m, torch.nn.Dropout)]
    assert own
    assert all(own)


@pytest.mark.slow
def test_types_are_compared_without_case(tmp_path):
    def spelt(given, kinds):
        return EntitySet([e.to_dict() | {"entity_type": kinds[i % len(kinds)]} for i, e in enumerate(given)])

    given = parts()
    it = trainer(
        tmp_path,
        train_dataset=spelt(given["train_dataset"], ["thing", "Thing"]),
        known=spelt(given["known"], ["Thing"]),
        unknown=spelt(given["unknown"], ["THING", "thing"]),
        max_steps=1,
    )
    it.train()
    assert it.setting.plan.groups.types == ["thing"]
    assert it.separation == trainer(tmp_path).separation


def test_however_many_are_held_out_two_of_each_kind_are_left(tmp_path):
    it = trainer(tmp_path, held_out_fraction=0.99, min_separation=0.0, max_steps=1)
    assert (len(it.setting.plan.fit_known), len(it.setting.plan.fit_unknown)) == (2, 2)
    it.train()
    assert it.state.log_history[0]["loss"] < 1e4


def test_unknown_latents_alone_train(tmp_path):
    it = trainer(tmp_path, num_known_latents=0, min_separation=0.0, max_steps=1)
    it.train()
    assert math.isfinite(it.state.log_history[0]["loss"])
    assert it.state.log_history[0]["away"] == 0


def test_callbacks_of_the_user_are_heard(tmp_path):
    it = trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=1e9)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        max_steps=9,
    )
    it.train()
    assert it.state.global_step == 2
    assert not any(isinstance(callback, RetainBudgetCallback) for callback in it.callback_handler.callbacks)


def test_targets_on_one_point_raise_the_collapse_alarm(tmp_path, caplog):
    it = trainer(tmp_path)
    rows = 6
    predictions = it.setting.states.h[:1].expand(rows, -1).numpy()
    group = it.setting.plan.groups.of_type("thing", held_out=True)[0]
    labels = (torch.arange(rows).numpy(), torch.full((rows,), group).numpy())
    with caplog.at_level(logging.WARNING):
        found = it._metrics(type("P", (), {"predictions": predictions, "label_ids": labels}))
    assert 0 <= found["variance_ratio"] < 1e-12
    assert "collapsed" in caplog.text


def test_entities_of_ones_own_are_judged(tmp_path):
    it = trainer(tmp_path)
    known = it.evaluate(entities("known", 8, seed=5), metric_key_prefix="fresh")
    assert {"fresh_loss", "fresh_known_auc", "fresh_toward"} <= known.keys()
    assert known["fresh_known_auc"] > it.evaluate(entities("unknown", 8, seed=5))["eval_known_auc"]


def test_a_peft_model_of_the_user_is_trained_as_it_is(tmp_path):
    given = parts()["model"]
    torch.manual_seed(0)
    model = get_peft_model(given, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    it = trainer(tmp_path, model=model)
    assert it.model is model
    it.train()
    assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)


def test_the_adapter_lies_on_blocks_up_to_the_layer(tmp_path):
    for config in (None, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")):
        it = trainer(tmp_path, peft_config=config)
        layers = {name.split("layers.")[1].split(".")[0] for name in lora_weights(it)}
        assert layers == {"0", "1"}
        assert config is None or config.layers_to_transform is None, "the user's config is left as it was"


@pytest.mark.slow
def test_what_cannot_be_trained_is_refused_by_name(tmp_path):
    known, unknown = entities("known", 36), entities("unknown", 24)
    cases = [
        ({"train_dataset": ["w5 w6"]}, "entities: expected an Entity or a mapping, got str"),
        ({"train_dataset": known[:0]}, "train_dataset: .*got no entities"),
        ({"known": known}, "train_dataset, known: .*got 4"),
        ({"unknown": unknown[:5]}, "unknown: .*'thing'.*got 5"),
        ({"min_separation": 1.0, "num_known_latents": 1, "num_unknown_latents": 0}, "min_separation="),
        ({"sae": None}, "Set layer="),
        ({"layer": 2}, "the SAE reads the output of layer 1"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("preset", "best"),
        ("toward", "nearest"),
        ("away", "far"),
        ("kl_weight", -1.0),
        ("toward_weight", float("nan")),
        ("pairs_per_target", 0),
        ("num_known_latents", 1.5),
        ("min_separation", 2.0),
        ("held_out_fraction", 1.0),
        ("layer", -1),
        ("retain_budget", 0.0),
        ("retain_positions", 0),
        ("torch_compile", True),
    ],
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, option, value):
    with pytest.raises(AlignmentError, match=option):
        settings(tmp_path, **{option: value})


def test_predictions_are_compared_at_a_few_places_of_a_row_always_its_last(tmp_path):
    it = trainer(tmp_path, retain_positions=3)
    for i in range(len(it.train_dataset)):
        item = it.train_dataset[i]
        assert len(item["retain_at"]) == min(3, len(item["retain_ids"]) - 1)
        assert item["retain_at"][-1] == len(item["retain_ids"]) - 1
        assert 0 not in item["retain_at"]
    whole = trainer(tmp_path, retain_positions=None).train_dataset[0]
    assert whole["retain_at"] == list(range(1, len(whole["retain_ids"])))


def test_the_head_runs_at_those_places_alone_and_the_kl_is_that_of_the_full_logits(tmp_path):
    it = trainer(tmp_path, max_steps=3, retain_positions=2)
    it.train()
    batch = it.data_collator([it.train_dataset[i] for i in range(4)])
    seen = []
    hook = it.model.get_output_embeddings().register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:-1]))
    with torch.no_grad():
        found = it._kl(it.model.eval(), batch)
    hook.remove()
    assert [tuple(shape) for shape in seen] == [(1, 8), (1, 8)]
    rows = {"input_ids": batch["retain_ids"], "attention_mask": batch["retain_mask"]}
    with torch.no_grad():
        tuned = it.model(**rows).logits.log_softmax(-1)
        with it.model.disable_adapter():
            base = it.model(**rows).logits.log_softmax(-1)
    expected = (base.exp() * (base - tuned)).sum(-1)[batch["retain_at"]].sum()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_a_refusal_leaves_the_model_as_it_was_given(tmp_path):
    given = parts()
    model = given["model"]
    names, flags = list(model.state_dict()), {n: p.requires_grad for n, p in model.named_parameters()}
    args = settings(tmp_path, min_separation=1.0, num_known_latents=1, num_unknown_latents=0)
    with pytest.raises(AlignmentError, match="min_separation="):
        SAEAlignmentTrainer(args=args, **given)
    assert list(model.state_dict()) == names
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not hasattr(model, "peft_config")


def test_data_sets_are_taken_where_entity_sets_are(tmp_path):
    given = parts()
    rows = {
        name: Dataset.from_list([e.to_dict() for e in given[name]]) for name in ("train_dataset", "known", "unknown")
    }
    one = trainer(tmp_path / "sets", max_steps=2)
    two = trainer(tmp_path / "rows", max_steps=2, **rows)
    assert one.train().training_loss == two.train().training_loss
    assert one.evaluate()["eval_loss"] == two.evaluate(rows["train_dataset"])["eval_loss"]


def test_all_but_the_model_and_the_settings_is_given_by_name(tmp_path):
    given = parts()
    with pytest.raises(TypeError, match="positional"):
        SAEAlignmentTrainer(given.pop("model"), settings(tmp_path), given.pop("train_dataset"), **given)
