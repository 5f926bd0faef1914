"""A training on a tiny model, and whether the model without its adapter stays the given one."""

import warnings

import torch
from peft import LoraConfig, PeftModel
from tiny_entities import parts, settings
from zoo import token_ids

from sae_unlearn.alignment import SAEAlignmentTrainer
from sae_unlearn.alignment.adapter import adapter_on
from sae_unlearn.backbone.adapters_off import adapters_off


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def trainer(folder, model=None, peft_config=None, name="llama", **options) -> SAEAlignmentTrainer:
    torch.manual_seed(0)
    given = parts(name) | ({} if model is None else {"model": model})
    return SAEAlignmentTrainer(args=settings(folder, **options), **given, peft_config=peft_config)


def predictions(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=token_ids(2, 9)).logits


def assert_reference_holds(it, given) -> None:
    """Train, and see that what was frozen stays frozen and that the model without its adapter is the given one."""
    frozen = {name: p.detach().clone() for name, p in it.model.named_parameters() if not p.requires_grad}
    flags = {name: p.requires_grad for name, p in it.model.named_parameters()}
    it.train()
    it.evaluate()
    assert {name: p.requires_grad for name, p in it.model.named_parameters()} == flags
    for name, parameter in it.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
    assert not torch.equal(predictions(it.model), given)
    with adapters_off(it.model):
        assert torch.equal(predictions(it.model), given)


def put_on(model, config) -> PeftModel:
    with adapter_on(model, config, 1, [5, 6, 7, 8]) as tuned_model:
        return tuned_model


def lora(**fields) -> LoraConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoraConfig(**{**LORA, **fields})
