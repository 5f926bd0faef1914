"""The adapter that a training moves: which weights, through which checkpoints, and what is saved of it."""

import copy
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_entities import parts
from tiny_trainer import largest_difference, lora_weights, trainer
from transformers import AutoModelForCausalLM

from sae_unlearn.alignment import AlignmentError
from sae_unlearn.backbone import checkpointing
from sae_unlearn.backbone.checkpointing import HOOKS_OUTSIDE


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
    with pytest.raises(AlignmentError, match=r"^peft_config: .*gradient"):
        trainer(tmp_path, peft_config=above, kl_weight=0.0).train()


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
