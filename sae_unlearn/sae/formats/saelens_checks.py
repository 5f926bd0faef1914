"""Checks for contradictions in SAELens' `cfg.json`: one of two settings would be ignored."""

from __future__ import annotations

from typing import Any

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.formats.base import layer_of_hook


# The activations of each architecture; a file may also name none.
ACTIVATIONS = {
    "standard": ("relu", "topk"),  # topk as SAELens before 6 wrote it
    "topk": ("topk", "relu"),  # "relu" was the default of the field, whatever the architecture
    "jumprelu": ("relu", "jumprelu"),
    "gated": ("relu",),
}
# Architectures that never had a k; a JumpReLU that was trained as a BatchTopK may still name it.
WITHOUT_K = ("standard", "gated")
# The number in the hook's name, under the keys of SAELens 1 to 5.
HOOK_LAYERS = ("hook_layer", "hook_point_layer")


def merge(spellings: dict[str, str], *parts: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of all parts under their present names.

    Args:
        spellings (dict[str, str]): Old name -> present name.
        *parts (dict[str, Any]): The file's top level and its metadata.
        where (str): The name of the file in errors.

    Raises:
        SAEFormatError: If one setting has two values.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            name = spellings.get(key, key)
            if merged.get(name) is not None and value is not None and merged[name] != value:
                raise SAEFormatError(
                    f"{name} in {where} has two values, {merged[name]!r:.40} and {value!r:.40}. Remove the wrong one."
                )
            if merged.get(name) is None:
                merged[name] = value
    return merged


def check_activation(cfg: dict[str, Any], where: str) -> None:
    """Raise unless the architecture, the activation and k belong together.

    Raises:
        SAEFormatError: If two of them contradict.
    """
    name, activation = str(cfg.get("architecture") or "standard"), cfg.get("activation_fn") or None
    if activation is not None and activation not in ACTIVATIONS.get(name, (activation,)):
        raise SAEFormatError(
            f"activation_fn={activation!r:.40} in {where}: expected {' or '.join(map(repr, ACTIVATIONS[name]))} with "
            f"architecture={name!r}. Correct one of them."
        )
    kwargs = cfg.get("activation_fn_kwargs")
    inner = kwargs.get("k") if isinstance(kwargs, dict) else None
    k = cfg.get("k")
    if k is not None and inner is not None and k != inner:
        raise SAEFormatError(f"k in {where} has two values, {k!r:.40} and {inner!r:.40}. Remove the wrong one.")
    k = inner if k is None else k
    if k is not None and name in WITHOUT_K and activation != "topk":
        raise SAEFormatError(
            f"k={k!r:.40} in {where}: expected none with architecture={name!r} and activation_fn={activation!r}. "
            "Remove k, or correct the architecture."
        )


def check_layers(cfg: dict[str, Any], layer: int) -> None:
    """Raise if another setting names another layer than the hook that is read.

    Args:
        cfg (dict[str, Any]): The settings.
        layer (int): The 0-based layer of the hook that is read.

    Raises:
        SAEFormatError: If a setting names another layer.
    """
    name = str(cfg.get("hook_name") or cfg.get("hf_hook_name"))
    other = cfg.get("hf_hook_name")
    if other and layer_of_hook(other) != layer:
        raise SAEFormatError(f"hook_name={name!r:.40}, but hf_hook_name={other!r:.40}. Correct one of them.")
    number = name.split(".")[1] if name.startswith("blocks.") else str(layer)
    for key in HOOK_LAYERS:
        if cfg.get(key) is not None and str(cfg[key]) != number:
            raise SAEFormatError(f"hook_name={name!r:.40}, but {key}={cfg[key]!r:.40}. Correct one of them.")
