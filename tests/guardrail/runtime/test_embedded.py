"""Models whose backbone is given embeddings: ids and mask are those that the model itself was given."""

import pytest
import torch
import transformers as t
from peft import get_peft_model
from zoo import BOS, EOS, LAYERS, PAD, VOCAB, WIDTH, ZOO, padded, plant, planted_config, token_ids

from sae_unlearn import record_firings


MESSAGE = [40, 41, 40, 42, EOS]


def multimodal():
    eyes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
    config = t.Gemma3Config(text_config=ZOO["gemma3"]().to_dict(), vision_config=eyes, **tokens)
    return t.Gemma3ForConditionalGeneration(config)


def embedded_before_the_backbone():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48}
    config = t.BertConfig(vocab_size=VOCAB, is_decoder=True, max_position_embeddings=128, pad_token_id=PAD, **sizes)
    return t.BertLMHeadModel(config)


@pytest.fixture(params=[multimodal, embedded_before_the_backbone])
def model(request):
    base = request.param().eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    guarded = get_peft_model(base, planted_config(threshold=0.0, refusal_ids=MESSAGE))
    plant(guarded)
    return guarded


def prompts():
    rows = [torch.cat([torch.tensor([BOS]), token_ids(1, n, seed=n)[0]]) for n in (9, 6)]
    return padded(rows)


def test_special_tokens_are_not_counted(model):
    with record_firings(model) as firings, torch.no_grad():
        model(**prompts())
        model(prompts()["input_ids"], prompts()["attention_mask"])
    assert [f.tokens for f in firings] == [9, 6, 9, 6]


def test_a_refusal_is_told_to_its_end(model):
    model.peft_config["default"].action = "refuse"
    inputs = prompts()
    with record_firings(model) as firings:
        found = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    told = found[:, inputs["input_ids"].shape[1] :].tolist()
    assert all(f.fired for f in firings)
    assert [row[: len(MESSAGE)] for row in told] == [MESSAGE, MESSAGE]


def test_embeddings_alone_show_no_ids(model):
    inputs = prompts()
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    with record_firings(model) as firings, torch.no_grad():
        model(inputs_embeds=embedded, **inputs)
    assert [f.tokens for f in firings] == [10, 7]
