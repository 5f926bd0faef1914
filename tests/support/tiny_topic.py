"""A tiny random model, a tokenizer of 97 words, and an SAE with features that tell two topics' words apart."""

import copy
import json
import random
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from zoo import BOS, EOS, PAD, VOCAB, base_model

from sae_unlearn import SparseAutoencoder, fit_guardrail
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.residual_stream import residual_batches


LAYER = 1
WORDS = {"forget": range(2, 30), "retain": range(30, 94)}
UNKNOWN = 95


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words `w2` to `w94`, one token each; a leading BOS."""
    vocabulary = {"<pad>": PAD, "<bos>": BOS, "<unk>": UNKNOWN, "<eos>": EOS}
    vocabulary |= {f"w{i}": i for i in range(2, 95)}
    assert len(vocabulary) == VOCAB
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def topic_texts(side: str, number: int, seed: int = 0, words: int = 14) -> list[str]:
    """Texts of a topic's words, with a few of the other's."""
    other = "retain" if side == "forget" else "forget"
    draw = random.Random(f"{side}{seed}")
    return [
        " ".join(f"w{draw.choice(WORDS[side if draw.random() < 0.85 else other])}" for _ in range(words + i % 4))
        for i in range(number)
    ]


def topic_sae(model: nn.Module, features: int = 2800) -> SparseAutoencoder:
    """An SAE of `model`: a feature for each word of the forget topic, which hardly fires on retain text, and others in
    random directions."""
    tokenizer = tiny_tokenizer()
    tokens = {side: _residuals(model, tokenizer(topic_texts(side, 48, seed=9)).input_ids) for side in WORDS}
    (forget_ids, forget), (_, retain) = tokens["forget"], tokens["retain"]
    directions = torch.randn(features, forget.shape[1], generator=torch.Generator().manual_seed(0))
    for place, word in enumerate(WORDS["forget"]):
        directions[place] = forget[forget_ids == word].mean(dim=0) - retain.mean(dim=0)
    directions = nn.functional.normalize(directions)
    return SparseAutoencoder(
        directions.T.contiguous(),
        torch.zeros(features),
        0.05 * directions,  # many fire at once and alike; small rows make the edit a moderate one
        torch.zeros(forget.shape[1]),
        architecture="jumprelu",
        threshold=(retain @ directions.T).quantile(0.97, dim=0).clamp(min=0.01),
        layer=LAYER,
    )


def _residuals(model: nn.Module, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[tokens]` and residuals `[tokens, d_in]`, without BOS and padding."""
    ids, residual = [], []
    for batch in residual_batches(model, rows, LAYER, 16):
        kept = batch.kept & (batch.input_ids != BOS)
        ids.append(batch.input_ids[kept])
        residual.append(batch.residual[kept].float())
    return torch.cat(ids), torch.cat(residual)


def tiny_parts(name: str = "llama") -> tuple[nn.Module, PreTrainedTokenizerFast, SparseAutoencoder]:
    """Model, tokenizer and SAE."""
    return _quiet_model(name), tiny_tokenizer(), copy.deepcopy(_topic_sae(name))


def _quiet_model(name: str) -> nn.Module:
    """A tiny model whose layers' weights are made small, so that a token's residual tells its word."""
    model = base_model(name)
    with torch.no_grad():
        for parameter in find_decoder_layers(model).layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.4)
    return model


@cache
def _topic_sae(name: str) -> SparseAutoencoder:
    return topic_sae(_quiet_model(name))


def save_parts(folder: Path, name: str = "llama") -> tuple[Path, Path]:
    """The folders of the model (with its tokenizer) and of the SAE."""
    model, tokenizer, sae = tiny_parts(name)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    sae.save_pretrained(folder / "sae")
    return folder / "model", folder / "sae"


def save_corpora(folder: Path) -> None:
    """Write `forget.txt` and `retain.json`, texts of either side."""
    (folder / "forget.txt").write_text("\n\n".join(topic_texts("forget", 40)))
    (folder / "retain.json").write_text(json.dumps(topic_texts("retain", 80)))


def save_adapters(folder: Path) -> None:
    """Save `model`, `sae`, a guardrail fitted to the forget topic as `guardrail`, and a random LoRA as `lora`."""
    save_parts(folder)
    model, tokenizer, sae = tiny_parts()
    texts = topic_texts("forget", 40), topic_texts("retain", 80)
    fit_guardrail(model, tokenizer, sae, *texts, progress=False).save_pretrained(folder / "guardrail")
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), lora).save_pretrained(folder / "lora")
