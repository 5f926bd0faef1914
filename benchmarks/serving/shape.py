"""The shape of Gemma 2 2B with few layers, and a guardrail of random weights for it.

Vocabulary, hidden size, heads and feed-forward width are those of the 2B model; of its 26 layers there are `LAYERS`, so
that it fits a small machine. A whole model's pass takes longer, so a guardrail's share of it is smaller than here.
"""

from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config

from benchmarks.speed.models import synthetic_sae
from sae_unlearn import SAEGuardrailConfig, attach_guardrail
from sae_unlearn.guardrail import StatisticKwargs, TokenRules


LAYERS = 4
LAYER = 1
FEATURES = 40


def shape(**fields: int) -> Gemma2Config:
    """Return the config, with other values of `fields`."""
    return Gemma2Config(num_hidden_layers=LAYERS, architectures=["Gemma2ForCausalLM"], dtype="float32", **fields)


def guard_at_random(model: nn.Module) -> nn.Module:
    """Return the model with a guardrail of random weights; half of its features are active at each token."""
    config = SAEGuardrailConfig(
        layer=LAYER,
        feature_ids=list(range(FEATURES)),
        feature_evidence=[1.0] * FEATURES,
        threshold=0.5,
        clamp_value=-1.0,
        gate_scope="prefix",
        statistic_kwargs=StatisticKwargs(min_tokens=8),
        tokens=TokenRules(special_ids=[0, 1, 2], outlier_norm=1e4),
        calibration={"residual_norm_median": 1e3},
    )
    return attach_guardrail(model, config, sae=synthetic_sae(shape().hidden_size, FEATURES, "cpu"))


def save_shape(model: Path, guardrail: Path) -> None:
    """Save the config of the shape, without weights, and a guardrail for it, unless they are there."""
    if guardrail.is_dir():
        return
    shape().save_pretrained(model)
    guard_at_random(AutoModelForCausalLM.from_config(shape(vocab_size=256))).save_pretrained(guardrail)
