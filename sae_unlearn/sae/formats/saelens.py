"""Reader of SAELens folders: `cfg.json` + `sae_weights.safetensors` of SAELens 3 to 6.

Source of the layout: SAELens (https://github.com/decoderesearch/SAELens), `sae_lens/saes` and
`sae_lens/loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import read_json_object
from sae_unlearn.sae.files.safetensors_header import read_tensors
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, needs
from sae_unlearn.sae.formats.folding import (
    fold_b_dec_into_b_enc,
    fold_decoder_norm,
    fold_gate,
    fold_input_mean,
    fold_input_scale,
)
from sae_unlearn.sae.formats.saelens_config import CONFIG, SCALER, WEIGHTS, SAELensConfig, parse_config
from sae_unlearn.sae.formats.saelens_model import unsaid_settings
from sae_unlearn.sae.validate import THRESHOLD_ARCHITECTURES, check_shapes, check_stated_sizes, require


TENSORS = (
    *("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_threshold", "b_gate", "b_mag", "r_mag", "topk_threshold"),
    *("scaling_factor", "finetuning_scaling_factor"),
)
MATRICES = ("W_enc", "W_dec", "b_dec")
GATE = ("b_gate", "b_mag", "r_mag")


def read(folder: SAEFolder) -> SAEWeights:
    """Return the folded weights of a SAELens folder.

    Raises:
        SAEFormatError: If it is malformed, or has a setting that cannot be folded into the weights.
    """
    scaler = read_json_object(folder.file(SCALER)) if folder.has(SCALER) else None
    raw, where = read_json_object(folder.file(CONFIG)), str(folder.file(CONFIG))
    config = parse_config(raw, scaler, where, unsaid_settings(folder.label))
    path = folder.file(WEIGHTS)
    return fold_saelens(read_tensors(path, TENSORS), config, path, where)


def fold_saelens(tensors: dict[str, torch.Tensor], config: SAELensConfig, path: Path, where: str) -> SAEWeights:
    """Return the folded weights of SAELens' tensors.

    Args:
        tensors (dict[str, Tensor]): Tensors by SAELens' names, some of TENSORS.
        config (SAELensConfig): Their settings.
        path (Path): The file of the tensors, for errors.
        where (str): The file of the settings, for errors.

    Raises:
        SAEFormatError: If tensors are missing, or contradict each other or the configuration.
    """
    tensors = dict(tensors)
    require(tensors, MATRICES, path)
    topk_threshold = tensors.pop("topk_threshold", None)
    if topk_threshold is not None and topk_threshold.numel() != 1:
        raise SAEFormatError(f"topk_threshold in {path} has shape {list(topk_threshold.shape)}: expected one number.")
    d_in, d_sae = check_shapes(tensors, path)
    check_stated_sizes((d_in, d_sae), (config.d_in, config.d_sae), path, where)

    W_enc, W_dec, b_dec = (tensors[name] for name in MATRICES)
    refuse_contradiction(set(tensors), topk_threshold is not None, config.architecture, path)
    threshold: torch.Tensor | None = None
    if "b_gate" in tensors:
        W_enc, b_enc, threshold = fold_gate(W_enc, *require(tensors, GATE, path))
    else:
        (b_enc,) = require(tensors, ("b_enc",), path)
        if config.architecture in THRESHOLD_ARCHITECTURES:
            threshold = stored_threshold(tensors, topk_threshold, d_sae, path)
    if config.apply_b_dec_to_input:
        b_enc = fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    if config.input_norm == "center" and not config.folded_center:
        W_enc = fold_input_mean(W_enc)
    gain = finetuning_gain(tensors, config, path)
    if gain is not None:
        W_dec = W_dec.double() * gain.double()[:, None]
    if config.input_scale != 1.0:
        W_enc, W_dec, b_dec = fold_input_scale(W_enc, W_dec, b_dec, config.input_scale)
    if config.rescale_acts_by_decoder_norm:
        W_enc, b_enc, W_dec = fold_decoder_norm(W_enc, b_enc, W_dec)
        if threshold is not None:  # in units of pre * |W_dec[j]|, and the input scale divided W_dec above
            threshold = threshold / config.input_scale
    settings = (config.architecture, threshold, config.k, config.layer, config.neuronpedia_id, config.input_norm)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, *settings)


def refuse_contradiction(names: set[str], has_topk_threshold: bool, architecture: str, path: Path) -> None:
    """Raise if the tensors belong to another architecture than the configuration names."""
    gate = names & set(GATE)
    threshold = names & {"threshold", "log_threshold"} | ({"topk_threshold"} if has_topk_threshold else set())
    surplus = gate if architecture != "gated" else set()
    if architecture not in THRESHOLD_ARCHITECTURES or gate:
        surplus = surplus | threshold
    if surplus:
        raise SAEFormatError(
            f"{path} holds {', '.join(sorted(surplus))}, which a {architecture!r} SAE does not have. "
            "Correct the architecture in its configuration."
        )


def stored_threshold(
    tensors: dict[str, torch.Tensor], topk_threshold: torch.Tensor | None, d_sae: int, path: Path
) -> torch.Tensor:
    """Return the threshold [d_sae], stored per feature, as a logarithm, or as BatchTopK's one number."""
    if "threshold" in tensors:
        return tensors["threshold"]
    if "log_threshold" in tensors:
        return tensors["log_threshold"].double().exp()
    if topk_threshold is not None:
        return topk_threshold.double().reshape(1).expand(d_sae)
    raise SAEFormatError(f"{path} lacks threshold: it holds {', '.join(sorted(tensors))}.")


def finetuning_gain(tensors: dict[str, torch.Tensor], config: SAELensConfig, path: Path) -> torch.Tensor | None:
    """Return the gain [d_sae] on activations before decoding; None if it is 1.

    SAELens before 6 could fine-tune it.
    """
    gain = tensors.get("finetuning_scaling_factor", tensors.get("scaling_factor"))
    if gain is None or bool((gain == 1).all()):
        return None
    if not config.finetuning_scaling_factor:
        raise SAEFormatError(
            f"{path} holds a scaling_factor other than 1 but its configuration does not switch "
            "finetuning_scaling_factor on, so whether it applies is unknown. Remove the tensor or set the switch."
        )
    return gain


READER = Reader(
    name="saelens", layout=f"{CONFIG} + {WEIGHTS}", find=needs(CONFIG, WEIGHTS, optional=(SCALER,)), read=read
)
