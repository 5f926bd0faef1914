"""A row that fired is answered with the message, or the call raises: every way in which a refusal could be lost.

Each way is a change of the model, or a call of it. What `guardrail_status` says of a changed model is what a call does.
"""

import copy
import pickle

import pytest
import torch
from peft import AdaLoraConfig, AdaptionPromptConfig, LoraConfig, PeftMixedModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaConfig
from zoo import EOS, base_model, guarded, token_ids, with_cache

from sae_unlearn import GuardrailNotReady, attach_guardrail, detach_guardrail, guardrail_status
from sae_unlearn.backbone.call_arguments import cache_of
from sae_unlearn.guardrail import guard_layers


IDS = token_ids(4, 12)
FIRST = 40
REFUSING = {"action": "refuse", "refusal": "w40 w41", "refusal_ids": [FIRST, 41, EOS], "threshold": 0.0}


def refusing(name="llama", **fields):
    return guarded(name, **(REFUSING | fields)).eval()


def bare(model):
    return model.get_base_model()


def repr_of(config):
    return str(config.peft_type)


def last_logits(output):
    """`[batch, vocabulary]` of the last position, from any output of a call."""
    logits = output.logits if hasattr(output, "logits") else next(part for part in output if part.ndim == 3)
    return logits[:, -1]


@torch.no_grad()
def becomes(call):
    """What becomes of the refusal: "said", "raises" or "lost"."""
    try:
        found = last_logits(call())
    except GuardrailNotReady:
        return "raises"
    return "said" if found.argmax(-1).eq(FIRST).all() else "lost"


def layer_alone(backbone):
    hidden = torch.randn(1, 3, 32)
    backbone.layers[1](hidden, position_embeddings=backbone.rotary_emb(hidden, torch.arange(3)[None]))


# --------------------------------------------------------------------------------------------------------- ways to call

CALLS = {
    "the model": (lambda m: m(input_ids=IDS), "said"),
    "the model inside": (lambda m: bare(m)(IDS), "said"),
    "return_dict=False": (lambda m: m(input_ids=IDS, return_dict=False), "said"),
    "return_dict=False with labels": (lambda m: m(input_ids=IDS, labels=IDS, return_dict=False), "said"),
    "labels": (lambda m: m(input_ids=IDS, labels=IDS), "said"),
    "with everything in the output": (
        lambda m: m(input_ids=IDS, return_dict=False, output_hidden_states=True, use_cache=True),
        "said",
    ),
    "logits_to_keep=0": (lambda m: m(input_ids=IDS, logits_to_keep=0), "said"),
    "logits_to_keep=1": (lambda m: m(input_ids=IDS, logits_to_keep=1), "said"),
    "logits_to_keep=50": (lambda m: m(input_ids=IDS, logits_to_keep=50), "said"),
    "logits_to_keep=-2": (lambda m: m(input_ids=IDS, logits_to_keep=-2), "said"),
    "logits_to_keep=tensor": (lambda m: m(input_ids=IDS, logits_to_keep=torch.tensor([3, 11])), "said"),
    "logits_to_keep=negative tensor": (lambda m: m(input_ids=IDS, logits_to_keep=torch.tensor([0, -1])), "said"),
    "logits_to_keep=mask": (lambda m: m(input_ids=IDS, logits_to_keep=torch.arange(12) > 6), "said"),
    "logits_to_keep=list": (lambda m: m(input_ids=IDS, logits_to_keep=[5, 11]), "said"),
    "logits_to_keep=tensor, tuple": (
        lambda m: m(input_ids=IDS, logits_to_keep=torch.tensor([11]), return_dict=False),
        "said",
    ),
    "logits_to_keep=scalar tensor": (lambda m: m(input_ids=IDS, logits_to_keep=torch.tensor(11)), "raises"),
    "embeddings": (lambda m: m(inputs_embeds=m.get_input_embeddings()(IDS)), "said"),
    "after a pass with a cache": (
        lambda m: m(input_ids=IDS[:, 6:], **with_cache(m, cache_of(m(input_ids=IDS[:, :6], use_cache=True)))),
        "said",
    ),
    "the forward of the model": (lambda m: bare(m).forward(IDS), "raises"),
    "the forward of the PeftModel": (lambda m: m.forward(IDS), "said"),
    "the backbone": (lambda m: bare(m).model(IDS), "raises"),
    "the forward of the backbone": (lambda m: bare(m).model.forward(IDS), "raises"),
    "backbone, then head": (lambda m: bare(m).lm_head(bare(m).model(IDS)[0]), "raises"),
    "a layer": (lambda m: layer_alone(bare(m).model), "raises"),
}


@pytest.mark.parametrize("way", CALLS)
def test_in_each_way_to_call_it_is_said_or_raises(way):
    call, expected = CALLS[way]
    assert becomes(lambda: call(refusing())) == expected


@pytest.mark.parametrize("keep", [[0, 5], [11], [3, 11, 11, 0], [-1, -3], torch.arange(12) % 2 == 1], ids=str)
@pytest.mark.parametrize("return_dict", [True, False])
def test_selected_positions_are_those_of_the_whole_pass(keep, return_dict):
    model, keep = refusing(threshold=0.4), torch.as_tensor(keep)
    with torch.no_grad():
        found = model(input_ids=IDS, logits_to_keep=keep, return_dict=return_dict)
        expected = model(input_ids=IDS).logits[:, keep]
    torch.testing.assert_close(found.logits if return_dict else found[0], expected)


# ------------------------------------------------------------------------------------------------- changes to the model


class OtherHead(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.head = model.model, model.lm_head

    def forward(self, input_ids):
        return (self.head(self.model(input_ids=input_ids)[0]),)


class Around(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **inputs):
        return self.inner(**inputs)


def cleared(model, *names):
    for name in names:
        getattr(bare(model), name).clear()
    return model


def joined(config, folder):
    return attach_guardrail(get_peft_model(base_model("llama"), config), folder).eval()


def over_it(config):
    return get_peft_model(bare(refusing()), config).eval()


def another_base():
    other = base_model("llama")
    other.model = bare(refusing()).model
    return other


def classifying():
    config = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(**config, num_attention_heads=4, pad_token_id=0, num_labels=3)
    )
    model.model = bare(refusing()).model
    return model


ADALORA = {"target_modules": ["q_proj"], "total_step": 10}
PROMPTS = {"adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM"}
LORA = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
CHANGES = {
    "nothing": lambda folder: refusing(),
    "a copy": lambda folder: copy.deepcopy(refusing()),
    "pickled": lambda folder: pickle.loads(pickle.dumps(refusing())),
    "wrapped": lambda folder: Around(refusing()),
    "hook before it cleared": lambda folder: cleared(refusing(), "_forward_pre_hooks"),
    "hook behind it cleared": lambda folder: cleared(refusing(), "_forward_hooks"),
    "both hooks cleared": lambda folder: cleared(refusing(), "_forward_pre_hooks", "_forward_hooks"),
    "another head": lambda folder: OtherHead(bare(refusing())),
    "another model": lambda folder: another_base(),
    "a classifier": lambda folder: classifying(),
    "the backbone of a model": lambda folder: bare(refusing()).model,
    "beside a LoRA": lambda folder: joined(LoraConfig(**LORA), folder),
    "beside a LoRA, without task_type": lambda folder: joined(LoraConfig(target_modules=["q_proj"]), folder),
    "beside AdaLoRA": lambda folder: joined(AdaLoraConfig(**ADALORA), folder),
    "beside AdaLoRA, a copy": lambda folder: copy.deepcopy(joined(AdaLoraConfig(**ADALORA), folder)),
    "beside AdaptionPrompt": lambda folder: joined(AdaptionPromptConfig(**PROMPTS), folder),
    "beside AdaptionPrompt, without its hooks": lambda folder: without_hooks(
        joined(AdaptionPromptConfig(**PROMPTS), folder)
    ),
    "under AdaptionPrompt": lambda folder: over_it(AdaptionPromptConfig(**PROMPTS)),
}
RAISES = {
    "hook before it cleared",
    "hook behind it cleared",
    "both hooks cleared",
    "another head",
    "another model",
    "a classifier",
    "the backbone of a model",
    "beside AdaptionPrompt, without its hooks",
    "under AdaptionPrompt",
}


def without_hooks(model):
    model.base_model._forward_hooks.clear()
    model.base_model._forward_pre_hooks.clear()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("refusing")
    refusing().save_pretrained(place)
    return place


def test_status_and_call_agree_under_a_mixed_model():
    """Its tuner calls the model with PEFT 0.21, and past the hooks with 0.20."""
    model = PeftMixedModel(bare(refusing()), LoraConfig(target_modules=["q_proj"])).eval()
    found = becomes(lambda: model(input_ids=IDS))
    assert guardrail_status(model).verdict == {"raises": "raises", "said": "guarded"}[found]


@pytest.mark.parametrize("change", CHANGES)
def test_status_and_call_agree_on_a_refusal(change, folder):
    model = CHANGES[change](folder)
    found = becomes(lambda: model(input_ids=IDS))
    assert found == ("raises" if change in RAISES else "said")
    assert guardrail_status(model).verdict == {"raises": "raises", "said": "guarded"}[found]


@pytest.mark.parametrize("change", sorted(set(CHANGES) - RAISES - {"wrapped"}))
def test_generate_says_it_after_each_change(change, folder):
    model = CHANGES[change](folder)
    found = model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)[:, 12:]
    assert found.tolist() == [[FIRST, 41, EOS]] * len(IDS)


@pytest.mark.parametrize("change", sorted(RAISES))
def test_with_another_action_the_same_changes_need_no_message(change, folder):
    model = CHANGES[change](folder)
    for guard in guard_layers(model):
        for config in guard.guard_config.values():
            config.action = "clamp"
    torn = change in ("hook before it cleared", "hook behind it cleared")
    assert guardrail_status(model).verdict == ("raises" if torn else "guarded")


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("at", ["before", "behind"])
def test_a_hook_that_calls_the_backbone_takes_no_message_away(at, prepend):
    model = refusing()
    head, backbone = bare(model), bare(model).model
    register = head.register_forward_pre_hook if at == "before" else head.register_forward_hook
    handle = register(lambda *_: (backbone(IDS), None)[1], prepend=prepend)
    assert becomes(lambda: model(input_ids=IDS)) == "raises"
    handle.remove()
    assert becomes(lambda: model(input_ids=IDS)) == "said"


@pytest.mark.parametrize("output", [lambda out: (), lambda out: {"logits": out.logits}, lambda out: out.logits[:, :-1]])
def test_an_output_without_its_logits_raises(output):
    model = bare(refusing())
    model.register_forward_hook(lambda module, args, out: output(out), prepend=True)
    with pytest.raises(GuardrailNotReady, match=r'^action="refuse": .*logits \[4, 12, vocabulary\]'):
        model(input_ids=IDS)


@pytest.mark.parametrize("config", [AdaLoraConfig(**ADALORA), AdaptionPromptConfig(**PROMPTS)], ids=repr_of)
def test_detached_it_leaves_no_hook_on_the_tuner(config, folder):
    model = joined(config, folder)
    detach_guardrail(model)
    assert not any([*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules())


def test_a_disabled_refusal_asks_for_no_model():
    model, plain = refusing(), base_model("llama")
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(bare(model).model(IDS)[0], plain.model(IDS)[0])
