"""Attack: add the direction from unknown to known entities back at the layer.

If the adapter only removes one direction of the residual stream, adding it restores the facts. For a guardrail, or
without such entities, the direction is what the adapter removed: see `displacement`.

Budget: white box, no training; states of known and unknown entities in the base model, which are not the targets, or
states of the base model on prompts that are not measured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import base_model_of, find_decoder_layers, residual_of
from sae_unlearn.backbone.logits import run_for_hooks
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.checks import check_all
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured, NotPossible
from sae_unlearn.evaluation.base_model import without_adapters


def known_direction(known: Tensor, unknown: Tensor) -> Tensor:
    """Return the mean known state minus the mean unknown state of the base model.

    Args:
        known, unknown (Tensor): `[entities, templates, d_in]`.

    Returns:
        Tensor: `[d_in]`.
    """
    return known.mean(dim=(0, 1)) - unknown.mean(dim=(0, 1))


@torch.no_grad()
def displacement(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    layer: int,
    base: nn.Module | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Return what adapters removed from the residual stream at a layer, `[d_in]`.

        d = mean_t (h_base(t) - h(t))     over tokens t of the prompts at which the two differ

    Args:
        model (nn.Module): The tuned model.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        prompts (sequence of str): Texts of the forgotten topic, which must not be measured afterwards.
        layer (int): 0-based index of the layer.
        base (nn.Module, *optional*): The model without the adapters. None disables the adapters of `model`.
        batch_size (int, *optional*, defaults to 8): Prompts per forward pass.

    Raises:
        UnlearnError: If `prompts` is empty, or the model has no adapters and `base` is None.
        NotPossible: If the adapters change nothing at this layer.
    """
    check_all(prompts, str, "prompts", 1)
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    tuned = _states(model, rows, layer, batch_size)
    if base is None:
        with without_adapters(model):
            plain = _states(model, rows, layer, batch_size)
    else:
        plain = _states(base, rows, layer, batch_size)
    difference = plain - tuned
    moved = difference.abs().amax(dim=1) > 0
    if not moved.any():
        raise NotPossible(
            f"layer={layer}: expected a layer at which the adapters change these prompts. Pass a later layer."
        )
    return difference[moved].mean(dim=0)


def _states(model: nn.Module, rows: Sequence[list[int]], layer: int, batch_size: int) -> Tensor:
    """The residual stream after a layer and its guardrail at all tokens, `[tokens, d_in]` in float32."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = residual_of(module, output)
        found.append(hidden[kept.to(hidden.device)].float().cpu())

    handle = find_decoder_layers(base_model_of(model)).layers[layer].register_forward_hook(note)
    try:
        for start in range(0, len(rows), batch_size):
            ids, kept = right_padded(rows[start : start + batch_size])
            run_for_hooks(model, ids, kept)
    finally:
        handle.remove()
    return torch.cat(found)


def direction_attack(
    model: nn.Module,
    layer: int,
    direction: Tensor,
    measure: Callable[[nn.Module], Measured],
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0),
    names: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[AttackPoint[Measured]]:
    """Measure with `strength * direction` added to the output of `layer`. Nothing in it is random.

        h <- h + s (mean known - mean unknown)

    Args:
        model (nn.Module): The tuned model.
        layer (int): 0-based index of the layer.
        direction (Tensor): `[d_in]`, from `known_direction`. Strength 1 moves the mean unknown to the mean known.
        measure (callable): Measure of the model while the direction is added.
        strengths (sequence of float, *optional*, defaults to (0, 0.5, 1, 2, 4)): Multiples of the direction. 0 is the
            unchanged tuned model.
        names (sequence of str, *optional*): Add it only at the last token of these names, where an alignment adapter
            acts. None adds it at every position, which at high strengths also damages the model as a whole.
        tokenizer (PreTrainedTokenizerBase, *optional*): Needed with `names`.

    Raises:
        UnlearnError: If `names` are given without a tokenizer.
    """
    if names is not None and tokenizer is None:
        raise UnlearnError(
            "tokenizer=None: expected a tokenizer, since names= are matched by their tokens. Pass tokenizer=."
        )
    patterns = None if names is None else _name_tokens(tokenizer, names)
    points = []
    for strength in strengths:
        with adding(model, layer, strength * direction, patterns):
            points.append(AttackPoint(float(strength), measure(model)))
    return points


@contextmanager
def adding(
    model: nn.Module, layer: int, vector: Tensor, patterns: Sequence[Sequence[int]] | None = None
) -> Iterator[None]:
    """Add `vector [d_in]` to the output of `layer` inside the `with` block.

    Args:
        model (nn.Module): The model.
        layer (int): 0-based index of the layer.
        vector (Tensor): `[d_in]`.
        patterns (sequence of sequence of int, *optional*): Token ids of names. The vector is added at the last token of
            each. None adds it at every position.
    """
    place = find_decoder_layers(base_model_of(model))
    where: list[Tensor] = []

    def note_ids(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        where[:] = [] if ids is None or patterns is None else [_pattern_ends(ids, patterns)]

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = residual_of(module, output)
        change = vector.to(hidden).expand_as(hidden)
        if patterns is not None:
            change = change * where[0].to(hidden.device)[..., None]
        return (hidden + change, *output[1:]) if isinstance(output, tuple) else hidden + change

    handles = [
        place.backbone.register_forward_pre_hook(note_ids, with_kwargs=True),
        place.layers[layer].register_forward_hook(add),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[list[int]]:
    """The ids of each name after a blank and at the beginning of a text."""
    texts = [text for name in names for text in (name, f" {name}")]
    return [
        list(ids) for ids in dict.fromkeys(tuple(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
    ]


def _pattern_ends(ids: Tensor, patterns: Sequence[Sequence[int]]) -> Tensor:
    """`[batch, seq]` bool: the last token of every occurrence of a pattern in `ids [batch, seq]`."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for pattern in patterns:
        length = len(pattern)
        if length <= ids.shape[1]:
            windows = ids.unfold(1, length, 1)
            found[:, length - 1 :] |= (windows == torch.tensor(pattern, device=ids.device)).all(dim=-1)
    return found
