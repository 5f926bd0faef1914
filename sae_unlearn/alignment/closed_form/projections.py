"""Output projections of MLPs, which the closed form changes, and the norm that may follow them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.errors import AlignmentError


_NAMES = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h", "fc2", "w2", "Wo")
_NOT_IN = ("attn", "attention", "mamba", "mixer", "conv", "lora_", "base_layer")
_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
_TOLERANCE = 0.02


class Change(NamedTuple):
    """A change of a projection's weight as factors, `dW = moves.T @ reads`.

    Attributes:
        moves: `[n, d_out]`.
        reads: `[n, d_in]`.
    """

    moves: Tensor
    reads: Tensor

    def __call__(self, k: Tensor) -> Tensor:
        """Return `dW k` for each row of `k`: `[..., d_in] -> [..., d_out]`."""
        return (k @ self.reads.T) @ self.moves


@dataclass(frozen=True)
class Projection:
    """The output projection of one layer's MLP.

    Attributes:
        layer (int): 0-based decoder layer.
        name (str): full name in the bare transformers model, without PEFT's `base_layer`.
        module (nn.Module): the projection; with a LoRA on it, PEFT's layer around it.
        gain (Tensor, *optional*): `[d_out]`, the elementwise weight of the RMS norm between the projection and the
            residual stream. None without such a norm.
        eps (float, *optional*, defaults to 0.0): Constant of that norm.
        scale (float, *optional*, defaults to 1.0): What the residual stream receives is this multiple of the
            (normalized) output.
    """

    layer: int
    name: str
    module: nn.Module
    gain: Tensor | None = None
    eps: float = 0.0
    scale: float = 1.0

    def written(self, m: Tensor) -> Tensor:
        """Return what an output adds to the residual stream, `[..., d_out]`.

            scale * m     or, with a norm,     scale * gain * m / sqrt(mean(m^2) + eps)

        Args:
            m (Tensor): Outputs `[..., d_out]`.
        """
        if self.gain is None:
            return self.scale * m
        return self.scale * self.gain * m / (m.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


def find_projections(model: nn.Module, layers: Sequence[int], row: Sequence[int]) -> list[Projection]:
    """Find the output projection of the MLP in each of some layers, in the order of the layers.

    The place is checked by experiment: a change of the projection's output has to change the layer's output in the way
    that `Projection.written` says. So a model that this does not describe is refused and not changed wrongly.

    Args:
        model (nn.Module): The bare transformers model, with or without PEFT layers.
        layers (Sequence[int]): 0-based decoder layers.
        row (Sequence[int]): Token ids of one text, for the check.

    Returns:
        list[Projection]: One for each layer.

    Raises:
        AlignmentError: If a layer is a mixture of experts, has no such projection, or uses it in another way.
    """
    place = find_decoder_layers(model)
    found = []
    for layer in sorted(layers):
        decoder_layer = place.layers[layer]
        kind = type(decoder_layer).__name__
        names = [name for name, _ in decoder_layer.named_modules()]
        if any("experts" in name for name in names):
            raise AlignmentError(
                f'init="closed_form": expected an MLP in layer {layer}, got the experts of a {kind}. '
                'Set init="zero", or solve_layers without mixtures of experts.'
            )
        own = [n for n in names if n.rpartition(".")[2] in _NAMES and not any(part in n for part in _NOT_IN)]
        if len(own) != 1:
            raise AlignmentError(
                f'init="closed_form": expected one output projection in the MLP of {kind}, got {own or "none"}. '
                'Set init="zero".'
            )
        norms = [n for n in names if n.rpartition(".")[2] in _NORMS]
        gain, eps = _rms_gain(decoder_layer.get_submodule(norms[0])) if norms else (None, 0.0)
        module = decoder_layer.get_submodule(own[0])
        site = Projection(layer, f"{place.name}.{layer}.{own[0]}", module, gain, eps)
        found.append(_checked(model, site, row, kind))
    return found


@torch.no_grad()
def _rms_gain(norm: nn.Module) -> tuple[Tensor, float]:
    """The weight of an RMS norm as it acts (Gemma adds 1 to it), and its epsilon.

    Raises:
        AlignmentError: the module is another kind of norm.
    """
    weight = next(norm.parameters())
    eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))
    ones = torch.ones(1, weight.numel(), device=weight.device, dtype=weight.dtype)
    gain = norm(ones)[0].float() * (1 + eps) ** 0.5
    probe = torch.linspace(-1, 2, weight.numel(), device=weight.device).to(weight.dtype)[None]
    x = probe.float()
    expected = gain * x / (x.square().mean() + eps).sqrt()
    if not torch.allclose(norm(probe).float(), expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.std())):
        raise AlignmentError(
            f'init="closed_form": expected an RMS norm after the MLP, got {type(norm).__name__}. Set init="zero".'
        )
    return gain, eps


def _checked(model: nn.Module, site: Projection, row: Sequence[int], kind: str) -> Projection:
    """The projection with its scale measured.

    Raises:
        AlignmentError: the layer's output does not follow it.
    """
    ids = list(row)
    with tapped([site]) as taps:
        before = next(residual_batches(model, [ids], site.layer, 1)).residual
        k, m = taps.read(site.layer, before)
        push = torch.linspace(-1, 1, m.shape[-1], device=m.device)[None] * m.square().mean().sqrt()
        taps.changes[site.layer] = [Change(push, k[0, -1:] / k[0, -1].square().sum())]
        after = next(residual_batches(model, [ids], site.layer, 1)).residual
        moved = taps.read(site.layer, after)[1]
    tolerance = _TOLERANCE if before.dtype == torch.float32 else 16 * _TOLERANCE
    wanted = (site.written(moved) - site.written(m))[0, -1].double()
    seen = (after.double() - before.double())[0, -1]
    scale = float((wanted @ seen) / (wanted @ wanted))
    if not float((seen - scale * wanted).norm()) <= tolerance * float(seen.norm()) or scale == 0:
        raise AlignmentError(
            f'init="closed_form": expected the MLP of {kind} to add to the residual stream, got another use of '
            f'{site.name.rpartition(".")[2]}. Set init="zero".'
        )
    return Projection(site.layer, site.name, site.module, site.gain, site.eps, scale)


class Taps:
    """Inputs and outputs of some projections, and changes of their weights that hooks add.

    The weights themselves are neither read nor written, so quantized ones are served like any others.

    Attributes:
        changes: active changes of each layer, which add up.
    """

    def __init__(self) -> None:
        self.changes: dict[int, list[Change]] = {}
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def read(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `[batch, seq, d_in]` and outputs `[batch, seq, d_out]` of the last pass, in float32.

        Args:
            layer (int): 0-based decoder layer.
            like (Tensor): `[batch, seq, ...]`, for models that flatten batch and sequence, as OPT does.
        """
        k, m = self._seen[layer]
        return k.reshape(*like.shape[:2], -1), m.reshape(*like.shape[:2], -1)

    def hook(self, layer: int) -> Any:
        """The forward hook of one projection."""

        def run(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            k, m = args[0].detach().float(), output.detach().float()
            here = self.changes.get(layer, [])
            for change in here:
                m = m + change(k)
            self._seen[layer] = k, m
            return m.to(output.dtype) if here else None

        return run


@contextmanager
def tapped(sites: Sequence[Projection], changes: Mapping[int, list[Change]] | None = None) -> Iterator[Taps]:
    """Read passes through the model at `sites` in the block, with `changes` active there."""
    taps = Taps()
    taps.changes.update(changes or {})
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(site.module.register_forward_hook(taps.hook(site.layer)))
        yield taps
