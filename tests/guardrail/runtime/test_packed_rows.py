"""Texts of a padding-free batch are judged one by one: logits, gradients and records are those of each text alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from zoo import PARAGRAPHS, base_model, guarded, plant, planted_config, random_sae, token_ids

from sae_unlearn import attach_guardrail, record_firings
from sae_unlearn.errors import GuardrailUnsupported, UnlearnError
from sae_unlearn.guardrail.runtime.packed_rows import attention_of


LENGTHS = (5, 1, 12, 7, 20, 9)
TEXTS = [token_ids(1, length, seed=length) for length in LENGTHS]
FLAT = torch.cat(TEXTS, dim=1)
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
PLACES = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
GATE = {"threshold": 0.55, "min_tokens": 4}  # a text of one token is quiet
PACKED = {"input_ids": FLAT, "position_ids": POSITIONS, "use_cache": False}


def alone(model):
    """Logits of each text alone, and the records."""
    with record_firings(model) as firings, torch.no_grad():
        logits = [model(input_ids=text, use_cache=False).logits[0] for text in TEXTS]
    return logits, [(f.fired, f.at_token, f.evidence, f.tokens) for f in firings]


def together(model, **inputs):
    with record_firings(model) as firings, torch.no_grad():
        logits = model(**(PACKED | inputs)).logits[0].split(LENGTHS)
    assert [f.row for f in firings] == list(range(len(LENGTHS)))
    return logits, [(f.fired, f.at_token, f.evidence, f.tokens) for f in firings]


def check(model, **inputs):
    wanted, found = alone(model), together(model, **inputs)
    assert found[1] == wanted[1]
    assert len({fired for fired, *_ in wanted[1]}) == 2  # the gate divides the texts
    for one, other in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def with_attention(name, implementation, **fields):
    model = guarded(name, **(GATE | fields))
    model.get_base_model().set_attn_implementation(implementation)
    assert attention_of(model) == implementation
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("scope", ["prefix", "sequence"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2", "qwen3", "gpt_neox", "mixtral"])
def test_logits_and_records_are_those_of_each_text_alone(name, scope, implementation):
    check(with_attention(name, implementation, gate_scope=scope))


@pytest.mark.parametrize(
    "fields",
    [
        {"statistic": "windowed", "threshold": 0.5},
        {"clamp_mode": "all"},
        {"sticky": False},
        {"boundary_ids": list(range(40, 60))},
        PARAGRAPHS,
        {"action": "record"},
        {"action": "refuse", "refusal_ids": [7, 8, 96]},
    ],
    ids=lambda fields: "-".join(map(str, fields.values()))[:20],
)
def test_kinds_of_guardrails(fields):
    check(guarded("llama", gate_scope="prefix", **(GATE | fields)))


def test_a_message_that_a_text_has_begun_is_told_on():
    model = guarded("llama", action="refuse", refusal_ids=[7, 8, 96], threshold=0.0)
    begun = torch.cat([FLAT[:, :8], torch.tensor([[7]])], dim=1)
    texts = [begun, TEXTS[4]]
    with torch.no_grad():
        wanted = [model(input_ids=text, use_cache=False).logits[0] for text in texts]
        positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
        found = model(input_ids=torch.cat(texts, dim=1), position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-5, rtol=1e-4)
    assert wanted[0][-1].argmax() == 8


def test_several_guardrails():
    model = guarded("llama", gate_scope="prefix")
    config = planted_config(layer=2, gate_scope="prefix", clamp_value=-1.0)
    second = attach_guardrail(model, config, sae=random_sae(8, layer=2), adapter_name="second")
    plant(second, "second", seed=4)
    with torch.no_grad():
        wanted = torch.cat([second(input_ids=text, use_cache=False).logits[0] for text in TEXTS])
        torch.testing.assert_close(second(**PACKED).logits[0], wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}], ids=str)
def test_batches_of_the_flattening_collator(options):
    batch = DataCollatorWithFlattening(return_tensors="pt", **options)([{"input_ids": text[0]} for text in TEXTS])
    batch.pop("labels")
    check(guarded("llama", gate_scope="prefix", **GATE), **batch)


def test_gradients_are_the_sum_of_those_of_the_texts():
    model = guarded("llama", gate_scope="prefix").train()
    weights = model.get_base_model().model.embed_tokens.weight.requires_grad_()

    def gradient(calls):
        weights.grad = None
        for inputs in calls:
            logits = model(**inputs).logits
            torch.nn.functional.log_softmax(logits, dim=-1).square().sum().backward()
        return weights.grad.clone()

    wanted = gradient([{"input_ids": text, "use_cache": False} for text in TEXTS])
    torch.testing.assert_close(gradient([PACKED]), wanted, atol=1e-3, rtol=1e-4)
    assert wanted.abs().sum() > 0


def test_a_lora_is_trained_on_flattened_batches(tmp_path):
    model = get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    config = planted_config(gate_scope="prefix", clamp_value=-1.0)
    model = attach_guardrail(model, config, sae=random_sae(8), adapter_name="guard")
    plant(model, "guard")
    options = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 3, "report_to": [], "seed": 0}
    arguments = TrainingArguments(str(tmp_path), save_strategy="no", **options)
    rows = [{"input_ids": text[0].tolist()} for text in TEXTS]
    before = {key: value.clone() for key, value in model.named_parameters() if value.requires_grad}
    Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithFlattening()).train()
    changed = [key for key, value in model.named_parameters() if key in before and not torch.equal(value, before[key])]
    assert changed
    assert all("lora" in key for key in changed)


@pytest.mark.parametrize(
    "inputs",
    [
        {"use_cache": True},
        {"attention_mask": torch.ones_like(FLAT)},
        {"position_ids": None, "cu_seq_lens_q": PLACES},
        {"cu_seq_lens_q": PLACES + (PLACES == 5).int()},
        {"cu_seq_lens_k": PLACES[:-1]},
        {"seq_idx": torch.zeros_like(FLAT)},
    ],
    ids=["a cache", "a mask", "no positions", "other places", "fewer places", "one number"],
)
def test_texts_that_the_model_would_mix_are_refused(inputs):
    model = guarded("llama")
    with pytest.raises(GuardrailUnsupported, match="packed sequences"):
        model(**(PACKED | inputs))


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next"])
def test_recurrent_layers_are_refused(name):
    with pytest.raises(GuardrailUnsupported):
        guarded(name)(**PACKED)


def test_a_mask_that_lets_texts_see_each_other_is_noticed(monkeypatch):
    from transformers.models.llama import modeling_llama

    make = modeling_llama.create_causal_mask
    model = guarded("llama")
    model.get_base_model().set_attn_implementation("eager")
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **given: make(**(given | {"position_ids": None})))
    with pytest.raises(GuardrailUnsupported, match=r"^position_ids .*packed sequences"):
        model(**PACKED)
    model.get_base_model().set_attn_implementation("sdpa")
    with pytest.raises(GuardrailUnsupported, match="attn_implementation='sdpa'"):
        model(**PACKED)


def test_counting_columns_is_refused():
    with pytest.raises(UnlearnError, match="counting='columns'"):
        guarded("llama", counting="columns")(**PACKED)
