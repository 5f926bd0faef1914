"""Models of the speed benchmarks: one set of weights, with different things around it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

from sae_unlearn import SAEGuardrailConfig, SparseAutoencoder, attach_guardrail
from sae_unlearn.backbone.layers import find_decoder_layers, text_config
from sae_unlearn.guardrail import StatisticKwargs, TokenRules, guard_layers


GEMMA_3_270M = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
}
SHAPES = {
    "gemma-2-2b": lambda: Gemma2Config(),  # the defaults are those of the 2B model
    "gemma-3-270m": lambda: Gemma3TextConfig(**GEMMA_3_270M),
    "thin": lambda: Gemma3TextConfig(**GEMMA_3_270M | {"vocab_size": 256, "num_hidden_layers": 1}),
    "thin-2b": lambda: Gemma2Config(vocab_size=256, num_hidden_layers=1),
}


def load(name: str, device: str, dtype: torch.dtype) -> nn.Module:
    """`demo`: the real Gemma 3 270M. Others: random weights in that shape; `thin` is one layer of Gemma 3 270M,
    and `thin-2b` one of Gemma 2 2B, with no head to speak of, so that what a guardrail adds stands out of the noise."""
    if name == "demo":
        from sae_unlearn.demo.model import load_demo_model

        return load_demo_model(dtype)[0].to(device)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(SHAPES[name](), dtype=dtype)
    return model.eval()


def load_with_sae(name: str, d_sae: int = 4096, threshold: float = 0.0) -> tuple[nn.Module, SparseAutoencoder, int]:
    """The model on the CPU in float32, an SAE, and the layer it reads: the demo's own, or one with random weights."""
    model = load(name, "cpu", torch.float32)
    if name == "demo":
        from sae_unlearn.demo.model import load_demo_sae

        sae = load_demo_sae()
        return model, sae, sae.layer
    return model, synthetic_sae(text_config(model).hidden_size, d_sae, "cpu", threshold), middle(model)


def twin(model: nn.Module) -> nn.Module:
    """A second model with the same tensors, for other hooks and adapters."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def synthetic_sae(d_in: int, d_sae: int, device: str, threshold: float = 0.0) -> SparseAutoencoder:
    """Random weights, decoder and encoder tied: what a product costs does not depend on what is in it."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).mul_(d_in**-0.5)

    zeros = {"b_enc": torch.zeros(d_sae, device=device), "b_dec": torch.zeros(d_in, device=device)}
    thresholds = torch.full((d_sae,), threshold, device=device)
    W_enc = draw(d_in, d_sae)
    W_dec = W_enc.T.contiguous()  # in memory of its own, as a trained one has it
    return SparseAutoencoder(W_enc=W_enc, W_dec=W_dec, architecture="jumprelu", threshold=thresholds, **zeros)


def middle(model: nn.Module) -> int:
    return text_config(model).num_hidden_layers // 2


def guarded(model: nn.Module, num_features: int, fires: bool, guardrails: int = 1, **fields: Any) -> nn.Module:
    """A twin with guardrails, about half of whose features are active on any token; they fire on every row, or on
    none."""
    d_in, layer, device = text_config(model).hidden_size, middle(model), str(next(model.parameters()).device)
    sae = synthetic_sae(d_in, num_features, device)
    bare = twin(model)
    for index in range(guardrails):
        config = SAEGuardrailConfig(
            layer=layer,
            feature_ids=list(range(num_features)),
            feature_evidence=[1.0] * num_features,
            threshold=0.0 if fires else 0.999 * num_features,
            clamp_value=-1.0,
            statistic_kwargs=StatisticKwargs(min_tokens=8),
            tokens=TokenRules(special_ids=[0, 1, 2]),
            **fields,
        )
        bare = attach_guardrail(bare, config, adapter_name=f"topic{index}", sae=sae)
    return bare.eval()


def switched_off(model: nn.Module) -> nn.Module:
    """A guarded model with its guardrails disabled: an empty wrapper."""
    for layer in guard_layers(model):
        layer.enable_adapters(False)
    return model


def with_whole_sae(model: nn.Module, sae: SparseAutoencoder, num_features: int) -> nn.Module:
    """The published procedure in a hook: encode with the whole SAE, clamp, decode, keep the reconstruction error.

    Written as cheaply as it can be while it uses the whole SAE: the error cancels, so one product with the decoder does
    instead of two.
    """
    ids = torch.arange(num_features, device=sae.W_enc.device)

    def edit(hidden: Tensor) -> Tensor:
        activations = sae.encode(hidden)
        hot = (activations[..., ids] > 0).any(-1)
        fires = hot.float().mean(dim=1) > 0.2
        clamped = activations.clone()
        clamped[..., ids] = torch.where((hot & fires[:, None])[..., None], -1.0, activations[..., ids])
        return (hidden + (clamped - activations) @ sae.W_dec).to(hidden.dtype)

    return with_edit(model, edit)


def with_edit(model: nn.Module, edit: Callable[[Tensor], Tensor]) -> nn.Module:
    """A twin with a hook that edits the residual stream after its middle layer."""
    bare = twin(model)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    find_decoder_layers(bare).layers[middle(bare)].register_forward_hook(hook)
    return bare


def with_lora(model: nn.Module, rank: int = 16) -> nn.Module:
    """A twin with a LoRA on every linear layer, not merged."""
    return get_peft_model(twin(model), LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")).eval()


def random_ids(model: nn.Module, batch: int, seq: int) -> Tensor:
    """Random content tokens `[batch, seq]`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, text_config(model).vocab_size, (batch, seq), generator=generator)
    return ids.to(next(model.parameters()).device)
