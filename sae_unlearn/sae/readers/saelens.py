"""SAELens folders: `cfg.json` + `sae_weights.safetensors`, as SAELens 3 to 6 write them.

Source of the layout: SAELens (https://github.com/decoderesearch/SAELens), `sae_lens/saes` and
`sae_lens/loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import SAEFormatError
from ..fold import fold_b_dec_into_b_enc, fold_decoder_norm, fold_gate, fold_input_scale
from ..folder import SAEFolder
from ..json_file import read_json_object
from ..safetensors_file import read_tensors, require
from ..shapes import check_shapes
from ..weights import SAEWeights
from .registry import Reader, needs
from .saelens_config import CONFIG, SCALER, WEIGHTS, SAELensConfig, parse_config


TENSORS = (
    *("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_threshold", "b_gate", "b_mag", "r_mag", "topk_threshold"),
    *("scaling_factor", "finetuning_scaling_factor"),
)
MATRICES = ("W_enc", "W_dec", "b_dec")


def read(folder: SAEFolder) -> SAEWeights:
    """The folded weights of a SAELens folder.

    Raises:
        SAEFormatError: malformed, or a setting that cannot be folded into the weights.
    """
    scaler = read_json_object(folder.file(SCALER)) if folder.has(SCALER) else None
    config = parse_config(read_json_object(folder.file(CONFIG)), scaler, str(folder.file(CONFIG)))
    path = folder.file(WEIGHTS)
    tensors = read_tensors(path, TENSORS)
    require(tensors, MATRICES, path)
    topk_threshold = tensors.pop("topk_threshold", None)
    if topk_threshold is not None and topk_threshold.numel() != 1:
        raise SAEFormatError(f"topk_threshold in {path} has shape {list(topk_threshold.shape)}; expected one number")
    d_in, d_sae = check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    for name, size in (("d_in", d_in), ("d_sae", d_sae)):
        if getattr(config, name) not in (None, size):
            raise SAEFormatError(f"{path} has {name}={size} but {folder.file(CONFIG)} says {getattr(config, name)}")

    W_enc, W_dec, b_dec = (tensors[name] for name in MATRICES)
    threshold: torch.Tensor | None = None
    if "b_gate" in tensors:
        W_mag, b_enc, threshold = fold_gate(W_enc, *require(tensors, ("b_gate", "b_mag", "r_mag"), path))
    else:
        W_mag, (b_enc,) = W_enc, require(tensors, ("b_enc",), path)
        if config.architecture in ("jumprelu", "gated", "batchtopk"):
            threshold = stored_threshold(tensors, topk_threshold, d_sae, path)
    W_enc = W_mag
    if config.apply_b_dec_to_input:
        b_enc = fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    if config.rescale_acts_by_decoder_norm:
        W_enc, b_enc, W_dec = fold_decoder_norm(W_enc, b_enc, W_dec)
    gain = finetuning_gain(tensors, config, path)
    if gain is not None:
        W_dec = W_dec.double() * gain.double()[:, None]
    if config.input_scale != 1.0:
        W_enc, W_dec, b_dec = fold_input_scale(W_enc, W_dec, b_dec, config.input_scale)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, config.architecture, threshold, config.k, config.layer)


def stored_threshold(
    tensors: dict[str, torch.Tensor], topk_threshold: torch.Tensor | None, d_sae: int, path: Any
) -> torch.Tensor:
    """The threshold [d_sae] under any of its spellings: per feature, as a logarithm, or BatchTopK's one number."""
    if "threshold" in tensors:
        return tensors["threshold"]
    if "log_threshold" in tensors:
        return tensors["log_threshold"].double().exp()
    if topk_threshold is not None:
        return topk_threshold.double().reshape(1).expand(d_sae)
    raise SAEFormatError(f"{path} lacks threshold; it holds {', '.join(sorted(tensors))}")


def finetuning_gain(tensors: dict[str, torch.Tensor], config: SAELensConfig, path: Any) -> torch.Tensor | None:
    """Gain [d_sae] on the activations before decoding, which SAELens before 6 could fine-tune; None where it is 1."""
    gain = tensors.get("finetuning_scaling_factor", tensors.get("scaling_factor"))
    if gain is None or bool((gain == 1).all()):
        return None
    if not config.finetuning_scaling_factor:
        raise SAEFormatError(
            f"{path} holds a scaling_factor other than 1 but its configuration does not switch "
            "finetuning_scaling_factor on, so whether it applies is unknown; remove the tensor or set the switch"
        )
    return gain


READER = Reader(
    name="saelens", layout=f"{CONFIG} + {WEIGHTS}", find=needs(CONFIG, WEIGHTS, optional=(SCALER,)), read=read
)
