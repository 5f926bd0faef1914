"""Parser of SAELens' `cfg.json` of SAELens 3 to 6, reduced to the settings that change the numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sae_unlearn.checks import check_number
from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import integer, switch
from sae_unlearn.sae.formats.base import layer_of_hook
from sae_unlearn.sae.formats.saelens_checks import check_activation, check_layers, merge
from sae_unlearn.sae.formats.saelens_model import reads_centered


CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
NEURONPEDIA_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
SCALER = "activation_scaler.json"  # saved with training checkpoints, whose input scale is not folded

ARCHITECTURES = {
    "standard": "standard",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
}
REFUSED = {
    "abstopk": "its features may be negative, but a guardrail's clamp and gate need values >= 0",
    "matching_pursuit": "its features are chosen one after the other, so none depends on its own column alone",
    "temporal": "its features depend on earlier tokens",
    "transcoder": "its output is at another place than its input",
    "skip_transcoder": "its output is at another place than its input",
    "jumprelu_transcoder": "its output is at another place than its input",
    "jumprelu_skip_transcoder": "its output is at another place than its input",
}
"""Architectures and activations of SAELens that no guardrail can use, with the reason."""
# Names before SAELens 6, when every setting was at the top level.
RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn", "hook_point_head_index": "hook_head_index"}
SWITCHES = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, "finetuning_scaling_factor": False}
LAYER_NORM = "layer_norm"  # each token's mean and standard deviation are removed and restored
FOLDED = "sae_unlearn_center_folded"  # in the metadata that this library writes: W_enc's columns are centered
RESCALE_FIX = "Fold it with SAELens' sae.fold_activation_norm_scaling_factor(scale), save it again, and load that."


@dataclass(frozen=True)
class SAELensConfig:
    """The settings of a SAELens SAE that the weights do not show.

    Attributes:
        architecture (str): This library's name for it.
        d_in (int or None): Width of the residual stream, if the file names it.
        d_sae (int or None): Number of features, if the file names it.
        k (int or None): Features kept per token, for topk.
        layer (int or None): 0-based decoder layer that is read, if the file names it.
        apply_b_dec_to_input (bool): True if b_dec is subtracted from the input.
        rescale_acts_by_decoder_norm (bool): True if pre-activations are multiplied by the decoder rows' norms.
        finetuning_scaling_factor (bool): True if a gain on the activations applies.
        input_scale (float): Factor on the input; its inverse applies to the output.
        neuronpedia_id (str, *optional*): Id of its page at neuronpedia.org, if the file names it.
        input_norm (str, *optional*): As in `SparseAutoencoder`.
        folded_center (bool, *optional*, defaults to False): True if the columns of the stored W_enc are centered.
    """

    architecture: str
    d_in: int | None
    d_sae: int | None
    k: int | None
    layer: int | None
    apply_b_dec_to_input: bool
    rescale_acts_by_decoder_norm: bool
    finetuning_scaling_factor: bool
    input_scale: float
    neuronpedia_id: str | None = None
    input_norm: str | None = None
    folded_center: bool = False


def parse_config(
    raw: dict[str, Any], scaler: dict[str, Any] | None, where: str, unsaid: dict[str, Any] | None = None
) -> SAELensConfig:
    """Parse `cfg.json`, and the scale of a training checkpoint if it has one.

    Args:
        raw (dict[str, Any]): Content of the file.
        scaler (dict[str, Any] or None): Content of the scale's file.
        where (str): The name of the file in errors.
        unsaid (dict[str, Any], *optional*): Settings that replace those of the file, see `unsaid_settings`.

    Raises:
        SAEFormatError: If a setting cannot be represented exactly, or two contradict.
    """
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SAEFormatError(f"metadata in {where} is a {type(metadata).__name__}: expected an object.")
    cfg = merge(RENAMED, raw, metadata, where=where) | (unsaid or {})

    refuse_unfoldable(cfg, where)
    check_activation(cfg, where)
    architecture = architecture_of(cfg, where)
    k = None
    if architecture == "topk":
        kwargs = cfg.get("activation_fn_kwargs")
        k = integer(cfg if "k" in cfg or not isinstance(kwargs, dict) else kwargs, "k", where)
    cfg = SWITCHES | cfg
    input_norm = input_norm_of(cfg, where)
    selects_by_norm = raw.get("architecture") in ("topk", "batchtopk", "matryoshka_batchtopk")
    return SAELensConfig(
        architecture=architecture,
        d_in=cfg.get("d_in"),
        d_sae=cfg.get("d_sae"),
        k=k,
        layer=layer_from(cfg, where),
        apply_b_dec_to_input=switch(cfg, "apply_b_dec_to_input", where),
        rescale_acts_by_decoder_norm=selects_by_norm and switch(cfg, "rescale_acts_by_decoder_norm", where),
        finetuning_scaling_factor=switch(cfg, "finetuning_scaling_factor", where),
        input_scale=input_scale_of(cfg, scaler, where),
        neuronpedia_id=neuronpedia_id_of(cfg),
        input_norm=input_norm,
        folded_center=input_norm == "center" and cfg.get(FOLDED) is True,
    )


def input_norm_of(cfg: dict[str, Any], where: str) -> str | None:
    """Return `input_norm` of `SparseAutoencoder`. "layer" removes each token's mean as well."""
    if cfg.get(FOLDED) is True:  # saved by this library
        return "center"
    centered = reads_centered(cfg, where)
    if cfg.get("normalize_activations") == LAYER_NORM:
        return "layer"
    return "center" if centered else None


def neuronpedia_id_of(cfg: dict[str, Any]) -> str | None:
    """Return the id of the SAE's page, such as "gemma-2-2b/3-gemmascope-res-16k"; None if malformed."""
    found = cfg.get("neuronpedia_id")
    return found if isinstance(found, str) and NEURONPEDIA_ID.fullmatch(found) else None


def architecture_of(cfg: dict[str, Any], where: str) -> str:
    """This library's name for the architecture; a folded JumpReLU keeps the name it was trained under."""
    name = str(cfg.get("architecture", "standard"))
    activation = cfg.get("activation_fn") or "relu"
    for field, value in (("architecture", name), ("activation_fn", str(activation))):
        if value in REFUSED:
            raise SAEFormatError(f"{field}={value!r} in {where}: {REFUSED[value]}. Choose another SAE.")
    if name == "standard" and activation == "topk":
        name = "topk"  # how SAELens before 6 wrote it
    elif activation not in ("relu", "topk", "jumprelu"):
        raise SAEFormatError(f"activation_fn={activation!r} in {where}: expected 'relu' or 'topk'.")
    if name not in ARCHITECTURES:
        raise SAEFormatError(f"architecture={name!r} in {where}: expected one of {', '.join(ARCHITECTURES)}.")
    trained_as = ARCHITECTURES.get(str(cfg.get("training_architecture")))
    if name == "jumprelu" and trained_as in ("batchtopk", "gated"):
        return trained_as
    return ARCHITECTURES[name]


def refuse_unfoldable(cfg: dict[str, Any], where: str) -> None:
    """Raise if the SAE reads one attention head or reshapes its input."""
    reshape = cfg.get("reshape_activations") or "none"
    if reshape != "none":
        raise SAEFormatError(
            f"reshape_activations={reshape!r} in {where}: attention-head SAEs do not read the residual stream. "
            "Choose an SAE on 'blocks.L.hook_resid_post'."
        )
    if cfg.get("hook_head_index") is not None:
        raise SAEFormatError(
            f"hook_head_index={cfg['hook_head_index']!r} in {where}: the SAE reads one attention head. "
            "Choose an SAE on 'blocks.L.hook_resid_post'."
        )


def input_scale_of(cfg: dict[str, Any], scaler: dict[str, Any] | None, where: str) -> float:
    """Return the constant factor on the input: 1, or the one in `activation_scaler.json`.

    Raises:
        SAEFormatError: If the factor is missing, not above 0, or depends on the token.
    """
    mode = cfg.get("normalize_activations")
    if isinstance(mode, bool):  # before SAELens 4
        mode = "expected_average_only_in" if mode else "none"
    if mode in (None, "none", LAYER_NORM):
        unused = (scaler or {}).get("scaling_factor")
        if unused not in (None, 1):
            raise SAEFormatError(
                f"scaling_factor={unused!r:.40} in {SCALER}, but normalize_activations={mode!r} in {where}. Remove the "
                "file, or correct the setting."
            )
        return 1.0
    if mode != "expected_average_only_in":
        raise SAEFormatError(
            f"normalize_activations={mode!r} in {where} depends on each token's norm or on statistics that are not in "
            "the weights, so it cannot be folded. Use an SAE with normalize_activations='none'."
        )
    if scaler is None:
        raise SAEFormatError(
            f"normalize_activations='expected_average_only_in' in {where}, but {SCALER} is missing. {RESCALE_FIX}"
        )
    scale = check_number(
        f"{SCALER} next to {where}: scaling_factor", scaler.get("scaling_factor"), above=0, error=SAEFormatError
    )
    if scaler.get("has_whitening"):
        raise SAEFormatError(f"{SCALER} next to {where} has whitening, which is not supported. {RESCALE_FIX}")
    return float(scale)


def layer_from(cfg: dict[str, Any], where: str) -> int | None:
    """Return the layer that `hook_name` names, or else `hf_hook_name`."""
    name = cfg.get("hook_name") or cfg.get("hf_hook_name")
    if not name:
        return None
    try:
        layer = layer_of_hook(name)
        check_layers(cfg, layer)
    except SAEFormatError as error:
        raise SAEFormatError(f"{where}: {error}") from None
    return layer
