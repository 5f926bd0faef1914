"""The small transformer of the synthetic world, and the gold model, which never read of the targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.synthetic.world import World


_ATTENTION = {"near": "sliding_attention", "far": "full_attention"}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and training of the transformer.

    Blocks are "near", where a token sees itself and the one before it, or "far", where it sees all before it. In large
    models what is known of a subject is gathered at the last token of its name and read from there by later tokens
    (Geva et al. 2023, arXiv 2304.14767). A small model with full attention everywhere has no need to: each later token
    reads the words of the name by itself, and states at the name can be exchanged with no effect on any answer. Near
    blocks below make it work as large models do; `recall_without_name_state` in `measures.py` checks that.
    """

    layer_types: tuple[str, ...] = ("near", "near", "far", "far")
    width: int = 96
    steps: int = 450
    batch_size: int = 96
    learning_rate: float = 6e-3
    seed: int = 0


def new_model(config: ModelConfig, tokenizer) -> Qwen2ForCausalLM:
    """A model with random weights that follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=len(config.layer_types),
                num_attention_heads=4,
                num_key_value_heads=4,
                use_sliding_window=True,
                sliding_window=2,
                layer_types=[_ATTENTION[kind] for kind in config.layer_types],
                max_position_embeddings=64,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    model.generation_config.eos_token_id = None
    return model


def pretrain(world: World, config: ModelConfig, tokenizer, without: frozenset[str] = frozenset()) -> Qwen2ForCausalLM:
    """Train on the world's sentences: linear warm-up, cosine decay, mean cross-entropy of all tokens.

    Args:
        without: names whose sentences are left out of every batch. All else (initial weights, batches, their order) is
            the same, so that the model differs from the full one by what it has not read and nothing else.
    """
    model = new_model(config, tokenizer).train()
    optimizers = _optimizers(model, config.learning_rate)
    warm_up = max(1, config.steps // 20)
    sentences = world.stream(config.seed)
    for step in range(config.steps):
        batch = [row.text for row in islice(sentences, config.batch_size) if row.name not in without]
        rate = min(1, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
        ids = padded(tokenizer(batch)["input_ids"], tokenizer.pad_token_id)
        # right-padded and causal: padding lies after every real token and needs no attention mask
        model(input_ids=ids, labels=ids.masked_fill(ids == tokenizer.pad_token_id, -100)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def _optimizers(model: Qwen2ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, which halves the steps; AdamW for everything else."""
    blocks = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(blocks, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def padded(rows: list[list[int]], pad: int) -> Tensor:
    """Token ids `[rows, longest]`, padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])
