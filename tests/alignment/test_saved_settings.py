"""Fields of `TrainingArguments` about what is saved: the best state, resumed adapters, no pickle."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_entities import parts
from tiny_trainer import same, trainer, weights

from sae_unlearn.backbone.adapters_off import adapters_off


def named(*names) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(parts()["model"], config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[-1])
    return model


@pytest.mark.parametrize("names", [("default",), ("forget",), ("default", "forget"), ("other", "default")])
def test_the_best_state_is_kept_whatever_the_adapter_is_called(tmp_path, names):
    it = trainer(
        tmp_path / "out",
        model=named(*names),
        max_steps=4,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=1,
        save_only_model=True,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    it.train()
    losses = [log["eval_loss"] for log in it.state.log_history if "eval_loss" in log]
    assert it.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < losses[-1] * (1 - 1e-3), "else nothing is shown"
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert len(kept) == 2
    assert not list((tmp_path / "out").rglob("optimizer.pt"))
    folder = tmp_path / "saved"
    it.save_model(str(folder))
    assert not [path.name for path in folder.iterdir() if path.is_dir()]
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(parts()["model"], folder).eval()(ids).logits  # as the card says
        assert torch.equal(loaded, it.model.eval()(ids).logits)
        with adapters_off(it.model):
            assert not torch.equal(loaded, it.model(ids).logits)


def test_an_adapter_with_a_name_is_resumed(tmp_path):
    run = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", model=named("forget"), max_steps=4)
    whole.train()
    trainer(tmp_path / "cut", model=named("forget"), **run).train()
    it = trainer(tmp_path / "cut", model=named("forget"), **run)
    it.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert same(weights(whole), weights(it))


def test_no_pickle_of_the_settings_is_saved(tmp_path):
    it = trainer(tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=1)
    it.train()
    it.save_model(str(tmp_path / "saved"))
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"adapter_config.json", "checkpoint-2"} <= names
    assert "training_args.bin" not in names
    assert not [path for path in (tmp_path / "saved").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
