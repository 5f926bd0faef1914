"""Attack: add the direction from unknown to known back at the layer.

If the adapter did no more than turn one direction of the residual stream, pushing it back brings the facts back.

Of a guardrail, or where there are no such entities, the direction is what the adapter took: `displacement`.

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
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, Measured, NotPossible
from sae_unlearn.evaluation.base_model import without_adapters


def known_direction(known: Tensor, unknown: Tensor) -> Tensor:
    """Mean known state minus mean unknown state of the base model: `[entities, templates, d_in]` twice -> `[d_in]`."""
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
    """What adapters took from the residual stream at a layer, `[d_in]`: the direction to add for whoever can compare.

        d = mean_t (h_base(t) - h(t))     over tokens t of the prompts at which the two differ

    Args:
        model: the tuned model.
        prompts: texts of the forgotten topic; not those that are measured afterwards.
        base: the model without the adapters; None takes `model` with its adapters out of force.

    Raises:
        ValueError: no prompts, or no adapters and no `base`.
        NotPossible: nothing differs at this layer.
    """
    if not prompts:
        raise ValueError("No prompts; pass at least one.")
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
        raise NotPossible(f"The adapters change nothing after layer {layer} on these prompts; name a later layer.")
    return difference[moved].mean(dim=0)


def _states(model: nn.Module, rows: Sequence[list[int]], layer: int, batch_size: int) -> Tensor:
    """The residual stream after a layer and its guardrail at all tokens, `[tokens, d_in]` float32."""
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
    """Measure with `strength * direction` added to the output of `layer`. There is nothing random in it.

        h <- h + s (mean known - mean unknown)

    Args:
        model: the tuned model.
        direction: `[d_in]`, from `known_direction`; strength 1 carries the mean unknown entity to the mean known one.
        measure: what to do with the model while the direction is being added.
        strengths: multiples of the direction; 0 is the tuned model as it is.
        names: add it only at the last token of these names, where an alignment adapter works. None adds it at every
            position, which also harms the model as a whole at high strengths.
        tokenizer: for `names`.

    Raises:
        ValueError: names without a tokenizer.
    """
    if names is not None and tokenizer is None:
        raise ValueError("names= are found by their tokens; pass tokenizer= as well.")
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
    """Add `vector [d_in]` to the output of `layer`, at every position or at the last token of each pattern of ids."""
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
    """The ids of each name, after a blank and at the beginning of a text; many tokenizers have two ways."""
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
