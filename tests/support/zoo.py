"""Tiny random models of many architectures, and guardrails planted on them so that the gate really divides rows."""

import copy
from functools import cache
from typing import Any

import torch
import transformers as t
from config_fields import grouped
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from sae_unlearn import SAEGuardrailConfig, SparseAutoencoder
from sae_unlearn.backbone.adapters_off import guards_off
from sae_unlearn.backbone.call_arguments import cache_name
from sae_unlearn.backbone.layers import base_model_of, find_decoder_layers
from sae_unlearn.guardrail import guard_layers


VOCAB, WIDTH, LAYERS = 97, 32, 4
PAD, BOS, EOS = 0, 1, 96

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_NO_GROUPS = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GEMMA = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
_BLOOM = {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4, "pad_token_id": PAD}

ZOO = {
    "llama": lambda: t.LlamaConfig(**_LLAMA),
    "mistral": lambda: t.MistralConfig(**_LLAMA, sliding_window=6),
    "qwen2": lambda: t.Qwen2Config(**_LLAMA),
    "qwen3": lambda: t.Qwen3Config(**_LLAMA, head_dim=8),
    "gemma2": lambda: t.Gemma2Config(**_LLAMA, **_GEMMA),
    "gemma3": lambda: t.Gemma3TextConfig(**_LLAMA, **_GEMMA),
    "gpt2": lambda: t.GPT2Config(**_GPT2),
    "gptj": lambda: t.GPTJConfig(**_GPT2, rotary_dim=4),
    "gpt_neox": lambda: t.GPTNeoXConfig(**_NO_GROUPS),
    "opt": lambda: t.OPTConfig(
        **{k: v for k, v in _NO_GROUPS.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=WIDTH,
        dropout=0.0,
    ),
    "phi": lambda: t.PhiConfig(**_LLAMA),
    "falcon": lambda: t.FalconConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        alibi=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        max_position_embeddings=128,
    ),
    "bloom": lambda: t.BloomConfig(**_BLOOM, bos_token_id=BOS, eos_token_id=EOS),
    "stablelm": lambda: t.StableLmConfig(**_LLAMA),
    "mixtral": lambda: t.MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: t.GptOssConfig(
        **_LLAMA, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "falcon_h1": lambda: t.FalconH1Config(
        **_LLAMA, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8
    ),
    "qwen3_next": lambda: t.Qwen3NextConfig(
        **_LLAMA,
        head_dim=8,
        partial_rotary_factor=0.5,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "modernbert_decoder": lambda: t.ModernBertDecoderConfig(**_NO_GROUPS, local_attention=8),
    "mamba": lambda: t.MambaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        state_size=8,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    ),
}


@cache
def _base(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(ZOO[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.25)
            model.get_output_embeddings().weight.mul_(0.15)  # flat logits, so that beams really diverge
    model.config._name_or_path = model.name_or_path = f"tiny-{name}"
    model.generation_config.eos_token_id = None  # generate to the end, so that runs can be compared token by token
    return model


def base_model(name: str) -> nn.Module:
    """A fresh copy of the tiny model of an architecture: 4 layers, width 32, the same weights every time."""
    return copy.deepcopy(_base(name))


def token_ids(batch: int, seq: int, seed: int = 0) -> torch.Tensor:
    """Random content tokens (no special ones)."""
    return torch.randint(2, EOS - 1, (batch, seq), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """`[batch, seq, vocabulary]`."""
    return model(input_ids=input_ids).logits


def random_sae(
    d_sae: int,
    seed: int = 0,
    layer: int | None = 1,
    width: int = WIDTH,
    threshold: float = 1.0,
    architecture: str = "jumprelu",
    **fields,
) -> SparseAutoencoder:
    """Unit directions, the decoder the encoder's transpose; `threshold` is that of all features, of a jumprelu SAE."""
    W_enc = nn.functional.normalize(torch.randn(width, d_sae, generator=torch.Generator().manual_seed(seed)), dim=0)
    if architecture == "jumprelu":
        fields["threshold"] = torch.full((d_sae,), threshold)
    weights = W_enc, torch.zeros(d_sae), W_enc.T.clone(), torch.zeros(width)
    return SparseAutoencoder(*weights, architecture, layer=layer, **fields)


def planted_config(layer: int = 1, num_features: int = 6, **fields) -> SAEGuardrailConfig:
    fields = {"threshold": 0.4, "special_ids": [PAD, BOS, EOS], "feature_ids": [*range(num_features)]} | fields
    if fields.get("statistic") == "windowed":
        fields = windowed_fields(len(fields["feature_ids"])) | fields
    return SAEGuardrailConfig(layer=layer, **grouped(**fields))


def windowed_fields(num_features: int) -> dict[str, Any]:
    """Fields of `statistic="windowed"` , with three more features and weights of either sign."""
    weights = [(2.0, 1.0, 0.0, 1.5, 0.75, 1.25)[i % 6] for i in range(num_features)]
    return {
        "gate_feature_ids": [900, 901, 902],
        "feature_evidence": [*weights, -1.0, 2.5, -0.5],
        "bias": -0.75,
        "other_mean": 0.125,
        "row_variance": 0.05,
        "token_variance": 4.0,
        "drift": 0.4375,
        "sum_weight": 0.1,
    }


PARAGRAPHS: dict[str, Any] = {
    "statistic": "windowed",
    "threshold": 0.6,
    "boundary_ids": [*range(40, 60)],
    "message_weight": 0.7,
}
"""A gate that judges paragraphs, which content tokens end."""


def plant(model: nn.Module, adapter_name: str = "default", seed: int = 0, dose: float = 3.0) -> None:
    """Fill a guardrail with random directions whose thresholds make about half of random tokens hot."""
    generator = torch.Generator().manual_seed(seed)
    layer = next(x for x in guard_layers(model) if adapter_name in x.guard_config)
    config, encoder, decoder = layer.guardrail(adapter_name)
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: list[torch.Tensor] = []
    decoder_layer = find_decoder_layers(bare).layers[config.layer]
    handle = decoder_layer.register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        ids = token_ids(16, 20)
        with guards_off(model):
            bare(input_ids=ids, attention_mask=torch.ones_like(ids))
        handle.remove()
        residual = seen[0].flatten(0, 1)
        directions = torch.randn(config.num_encoded, residual.shape[1], generator=generator)
        directions = nn.functional.normalize(directions)
        guarded = directions[: config.num_features]
        peaks = (residual @ guarded.T).amax(dim=1).sort().values
        middle = len(peaks) // 2
        encoder.weight.copy_(directions)
        encoder.bias.zero_()
        encoder.threshold.fill_(
            peaks[middle : middle + 2].mean().clamp(min=0)
        )  # between two, so that no token is on it
        decoder.weight.copy_(guarded)
        decoder.clamp.fill_(-dose * peaks.abs().mean())


def padded(rows: list[torch.Tensor], side: str = "left") -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows `[seq_i]` as one batch."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """A cache as the argument that the model takes it by: the name changed with transformers 5.24."""
    inner = model.base_model.model if isinstance(model, PeftModel) else base_model_of(model)  # also without adapters
    name = cache_name(inner)
    assert name is not None
    return {name: cache}


def guarded(name: str, **fields) -> nn.Module:
    """A tiny model with a planted guardrail `default`."""
    model = get_peft_model(base_model(name), planted_config(**fields))
    plant(model)
    return model


class LayerTap:
    """Notes what goes into the guardrail at a decoder layer and what comes out, call by call, as `before`, `after`."""

    def __init__(self, model: nn.Module, layer: int = 1) -> None:
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder_layer = find_decoder_layers(bare).layers[layer]
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []

    def __enter__(self) -> "LayerTap":
        def note(seen):
            return lambda m, args, out: seen.append((out[0] if isinstance(out, tuple) else out).detach().clone())

        self.handles = [
            self.decoder_layer.register_forward_hook(note(self.before), prepend=True),
            self.decoder_layer.register_forward_hook(note(self.after)),
        ]
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def edits(self) -> torch.Tensor:
        """`[batch, tokens, d_in]`: what the guardrail added, over all calls."""
        return torch.cat(self.after, dim=1) - torch.cat(self.before, dim=1)
