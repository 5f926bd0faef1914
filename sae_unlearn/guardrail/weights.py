"""Weights of a guardrail, and checks that given tensors can be such weights.

The checks run on every file before it is used, and on every guardrail before its first call, however its weights were
loaded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.sae.equations import without_autocast
from sae_unlearn.sae.slice import SAESlice


class EncoderRows(NamedTuple):
    """Rows of a guardrail's encoder: `weight [n, d_in]`, `bias [n]`, `threshold [n]`."""

    weight: Tensor
    bias: Tensor
    threshold: Tensor

    @classmethod
    def of(cls, part: SAESlice) -> "EncoderRows":
        """Return the encoder of a slice of an SAE."""
        return cls(part.W_enc.T, part.b_enc, part.threshold)

    def joined(self, other: "EncoderRows") -> "EncoderRows":
        """Return these rows, and then those of `other`, in the device and dtype of these."""
        return EncoderRows(*(torch.cat([mine, more.to(mine)]) for mine, more in zip(self, other, strict=True)))


def tensors_of(rows: EncoderRows, W_dec: Tensor, clamp: Tensor) -> dict[str, Tensor]:
    """Return a guardrail's tensors, float32 on the CPU.

    Args:
        rows (EncoderRows): Of the N guarded features, and then M that only the gate reads.
        W_dec (Tensor): Decoder rows of the guarded features, `[N, d_in]`.
        clamp (Tensor): Their clamp values `[N]`.
    """
    tensors = {
        "encoder.weight": rows.weight,
        "encoder.bias": rows.bias,
        "encoder.threshold": rows.threshold,
        "decoder.weight": W_dec,
        "decoder.clamp": clamp,
    }
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


class FullPrecision(nn.Module):
    """A module whose parameters are never lowered below float32.

    A threshold is a comparison, and casting the model to half precision must not move it.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype.itemsize < 4 <= tensor.dtype.itemsize:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep, recurse)  # type: ignore[no-untyped-call]


def _empty(*shape: int) -> nn.Parameter:
    """A frozen parameter of NaN, so that a missing weight is detected and not taken for 0."""
    return nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)


class GuardrailEncoder(FullPrecision):
    """The guarded columns of an SAE's encoder.

    Parameters: `weight [N, d_in]` (= `W_enc[:, S].T`), `bias [N]`, `threshold [N]`.
    """

    def __init__(self, d_in: int, num_features: int) -> None:
        super().__init__()
        self.weight = _empty(num_features, d_in)
        self.bias = _empty(num_features)
        self.threshold = _empty(num_features)

    @classmethod
    def of(cls, rows: EncoderRows) -> "GuardrailEncoder":
        """Return the encoder of these rows, in float32."""
        n, d_in = rows.weight.shape
        encoder = cls(d_in, n)
        for name, tensor in rows._asdict().items():
            getattr(encoder, name).data.copy_(tensor)
        return encoder

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the activations `a [..., N]` of `hidden [..., d_in]`, in the parameters' precision."""
        with without_autocast(hidden):
            pre = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return pre * (pre > self.threshold)


class GuardrailDecoder(FullPrecision):
    """The guarded rows of an SAE's decoder, and the clamp values of their features.

    Parameters: `weight [N, d_in]` (= `W_dec[S]`), `clamp [N]` (= `v`).
    """

    def __init__(self, d_in: int, num_features: int) -> None:
        super().__init__()
        self.weight = _empty(num_features, d_in)
        self.clamp = _empty(num_features)

    def forward(self, activations: Tensor, where: Tensor) -> Tensor:
        """Return the edit `[..., d_in]` for activations `[..., N]`, clamped where `where [..., N]` is True."""
        change = torch.where(where, self.clamp, activations) - activations
        with without_autocast(change):
            return change @ self.weight


class LayerGuardrail(NamedTuple):
    """One guardrail of a guarded layer, from `SAEGuardrailLayer.guardrail(name)`.

    Attributes:
        config (SAEGuardrailConfig): Its config. Assignments take effect with the next forward pass.
        encoder (GuardrailEncoder): The guarded columns of the SAE's encoder.
        decoder (GuardrailDecoder): The guarded rows of the SAE's decoder, and the clamp values.
    """

    config: SAEGuardrailConfig
    encoder: GuardrailEncoder
    decoder: GuardrailDecoder

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the parameters by the names of `PARTS`."""
        return {
            f"{part}.{name}": parameter
            for part, module in (("encoder", self.encoder), ("decoder", self.decoder))
            for name, parameter in module.named_parameters()
        }


PARTS = {
    "encoder.weight": "sae_guardrail_encoder.weight",
    "encoder.bias": "sae_guardrail_encoder.bias",
    "encoder.threshold": "sae_guardrail_encoder.threshold",
    "decoder.weight": "sae_guardrail_decoder.weight",
    "decoder.clamp": "sae_guardrail_decoder.clamp",
}


# A row of an SAE's matrix has a norm near 1, times the scale of its model's residual stream, which is folded in. All
# published SAEs are far within these bounds. Beyond them a feature never fires, or its edit overflows.
SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e6
# The rows of one SAE are similar: each is within this factor of their median norm.
LARGEST_SPREAD = 1e4
# Biases, thresholds and clamp values are activations, which are bounded by the norms above.
LARGEST_ACTIVATION = 1e9


def check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise unless the values can be a guardrail's.

    Args:
        tensors (mapping): `encoder.weight [N + M, d_in]`, `encoder.bias [N + M]`, `encoder.threshold [N + M]`,
            `decoder.weight [N, d_in]`, `decoder.clamp [N]`. Only the gate uses the last M features.
        source (str): Their source, for the message.

    Raises:
        GuardrailError: If a value is not finite, a threshold is negative, a clamp is positive, a feature has no
            direction, a value is beyond those of SAEs, or the edit would amplify the topic.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise GuardrailError(f"{name} of {source}: expected finite values, got values that are not finite.")
    if bool((tensors["encoder.threshold"] < 0).any()):
        raise GuardrailError(f"encoder.threshold of {source}: expected values >= 0, got negative ones.")
    if bool((tensors["decoder.clamp"] > 0).any()):
        raise GuardrailError(
            f"decoder.clamp of {source}: expected values <= 0, got positive ones, which would amplify the topic."
        )
    for name in ("encoder.weight", "decoder.weight"):
        _check_rows(name, tensors[name], source)
    for name in ("encoder.bias", "encoder.threshold", "decoder.clamp"):
        largest = float(tensors[name].abs().amax())
        if largest > LARGEST_ACTIVATION:
            raise GuardrailError(
                f"{name} of {source}: expected sizes up to {LARGEST_ACTIVATION:g}, as in SAEs, "
                f"got {largest:.3g}. Fit or download "
                "it again."
            )
    _check_edit(tensors, source)


def check_lowers(encoder_weight: Tensor, decoder_weight: Tensor, source: str) -> None:
    """Raise unless the edit of each feature lowers that feature: `W_enc[:, j] . W_dec[j] > 0`.

    Args:
        encoder_weight, decoder_weight (Tensor): `[N, d_in]`.
        source (str): Their source, for the message.

    Raises:
        GuardrailError: If an edit would raise its own feature. The message names the first such feature.
    """
    effect = own_effect(encoder_weight, decoder_weight)
    if bool((effect <= 0).any()):
        worst = int((effect <= 0).nonzero()[0])
        raise GuardrailError(
            f"decoder.weight of {source}: expected a product above 0 with encoder.weight, "
            f"got {float(effect[worst]):.3g} for "
            f"feature {worst}, which its edit would amplify. Omit it and fit again, or download it again."
        )


def own_effect(encoder_weight: Tensor, decoder_weight: Tensor) -> Tensor:
    """Return how much a step along its decoder row moves each feature, `[N]`, from rows `[N, d_in]` each."""
    return torch.einsum("nd,nd->n", encoder_weight.double(), decoder_weight.double())


def _check_edit(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise unless each feature's edit lowers it, and so does the edit of all features.

    With `s` the sizes of the clamp values,

        (sum_j s_j W_enc[:, j]) . (sum_j s_j W_dec[j]) > 0

    This holds for every SAE whose decoder is its encoder's transpose, whatever `s`.
    """
    encoder, decoder = (tensors[f"{part}.weight"].double() for part in ("encoder", "decoder"))
    encoder = encoder[: len(decoder)]
    check_lowers(encoder, decoder, source)
    sizes = -tensors["decoder.clamp"].double()
    if not bool(sizes.any()):
        sizes = torch.ones_like(sizes)  # set to 0, as with action="clamp" without a dose
    effect = float((sizes @ encoder) @ (sizes @ decoder))
    if effect <= 0:
        raise GuardrailError(
            f"decoder.weight of {source}: expected a product above 0 of the sums with encoder.weight, "
            f"got {effect:.3g}. The "
            "edit of all features would amplify them. Fit or download it again."
        )


def check_heard(config: SAEGuardrailConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise if no token with a norm up to `outlier_norm` can be hot enough for the gate to fire.

    The pre-activation of feature j is then at most

        |W_enc[:, j]| outlier_norm + b_enc[j]

    The norms of real tokens are not known from the weights.

    Raises:
        GuardrailError: If the gate could never fire. The message names the limit.
    """
    if config.tokens.outlier_norm is None:
        return
    norms = torch.linalg.vector_norm(tensors["encoder.weight"].double(), dim=1)
    highest = norms * config.tokens.outlier_norm + tensors["encoder.bias"].double()
    active = (highest > tensors["encoder.threshold"].double()).tolist()
    evidence = config.feature_evidence or [1.0] * len(active)
    heard = [value for value, can in zip(evidence, active, strict=True) if can]
    if config.statistic == "windowed":
        heard = [config.statistic_kwargs.bias, *(value for value in heard if value > 0)]
    hottest = sum(heard) if config.feature_evidence is not None else max(heard, default=0.0)
    needed = config.statistic_kwargs.drift if config.statistic == "windowed" else config.tau
    if not hottest > needed:
        raise GuardrailError(
            f"tokens.outlier_norm={config.tokens.outlier_norm} of {source}: "
            "expected tokens that can be hot enough, got "
            f"{sum(active)} of {len(active)} features that can be active, so its gate would never fire. Raise it."
        )


def _check_rows(name: str, weight: Tensor, source: str) -> None:
    norms = torch.linalg.vector_norm(weight.double(), dim=1)  # squares of denormals are 0 in float32
    empty = (norms == 0).nonzero().flatten().tolist()
    if empty:
        raise GuardrailError(f"{name} of {source}: expected norms above 0, got zero for features {empty[:5]}.")
    median = norms.median()
    outside = (norms < SMALLEST_NORM) | (norms > LARGEST_NORM)
    outside |= (norms < median / LARGEST_SPREAD) | (norms > median * LARGEST_SPREAD)
    if bool(outside.any()):
        worst = int(outside.nonzero()[0])
        raise GuardrailError(
            f"{name} of {source}: expected norms of {SMALLEST_NORM:g} to {LARGEST_NORM:g}, within a factor "
            f"{LARGEST_SPREAD:g} of their median {float(median):.3g}, got {float(norms[worst]):.3g} for "
            f"feature {worst}. "
            "Fit or download it again."
        )
