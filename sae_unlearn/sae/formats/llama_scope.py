"""Reader of Llama Scope: `hyperparams.json` + `checkpoints/final.safetensors`.

Each layer has a folder such as "Llama3_1-8B-Base-L9R-8x". The weights are those of training, on inputs scaled to an
average norm of sqrt(d_model):

    x = s * h,  s = sqrt(d_model) / dataset_average_activation_norm
    pre = x @ W_enc + b_enc                       (of x - b_dec, if apply_decoder_bias_to_pre_encoder)
    h' = (a @ W_dec + b_dec) / s

The family's inference folds s, and then n_j = |W_dec[j]| if sparsity_include_decoder_norm: features are
`pre / s * n_j`, and these are compared with `jump_relu_threshold`, which therefore stays as it is (in units of h, not
of x). That is `standardize_parameters_of_dataset_norm` and `transform_to_unit_decoder_norm` in its initializer; its
authors corrected SAELens' loader in the same sense (SAELens #483).

Source: He et al. 2024 (arXiv 2410.20526), https://github.com/OpenMOSS/Language-Model-SAEs and
https://huggingface.co/fnlp/Llama3_1-8B-Base-LXR-8x
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import integer, number, read_json_object, switch
from sae_unlearn.sae.files.safetensors_header import read_tensors
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, layer_of_hook, needs
from sae_unlearn.sae.formats.folding import fold_b_dec_into_b_enc, fold_decoder_norm
from sae_unlearn.sae.validate import check_shapes, check_stated_sizes, require, transpose


CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")

# act_fn -> this library's architecture.
ACTIVATIONS = {"jumprelu": "jumprelu", "topk": "topk", "relu": "standard"}


@dataclass(frozen=True)
class LlamaScopeConfig:
    """The settings of `hyperparams.json` that change the numbers.

    Attributes:
        architecture (str): This library's name for it.
        scale (float): `s` above; 1 if the weights are standardized.
        threshold (float or None): Threshold of the folded features, for jumprelu.
        k (int or None): Features kept per token, for topk.
        decoder_bias (bool): True if the SAE has a b_dec.
        subtract_b_dec (bool): True if b_dec is subtracted from the scaled input.
        decoder_norm (bool): True if features are multiplied by their decoder rows' norms.
        layer (int): 0-based decoder layer read.
    """

    architecture: str
    scale: float
    threshold: float | None
    k: int | None
    decoder_bias: bool
    subtract_b_dec: bool
    decoder_norm: bool
    layer: int


def parse_config(raw: dict[str, Any], where: str) -> LlamaScopeConfig:
    """Parse `hyperparams.json`. Every setting is required.

    The family's defaults changed between releases, so a missing setting is ambiguous.

    Raises:
        SAEFormatError: If a setting is missing, malformed, or cannot be represented exactly.
    """
    layer = layer_from(raw, where)
    act_fn, threshold = raw.get("act_fn"), number(raw, "jump_relu_threshold", where)
    if act_fn == "topk" and threshold > 0:
        act_fn = "jumprelu"  # as the family's inference: the threshold replaces the k largest
    if act_fn == "relu" and threshold > 0:
        raise SAEFormatError(
            f"jump_relu_threshold={threshold} in {where}, but act_fn='relu' has no threshold. Correct one of them."
        )
    if not isinstance(act_fn, str) or act_fn not in ACTIVATIONS:
        raise SAEFormatError(f"act_fn={act_fn!r} in {where}: expected one of {', '.join(ACTIVATIONS)}.")
    decoder_bias = switch(raw, "use_decoder_bias", where)
    return LlamaScopeConfig(
        architecture=ACTIVATIONS[act_fn],
        scale=scale_of(raw, where),
        threshold=threshold if act_fn == "jumprelu" else None,
        k=integer(raw, "top_k", where) if act_fn == "topk" else None,
        decoder_bias=decoder_bias,
        subtract_b_dec=decoder_bias and switch(raw, "apply_decoder_bias_to_pre_encoder", where),
        decoder_norm=switch(raw, "sparsity_include_decoder_norm", where),
        layer=layer,
    )


def layer_from(raw: dict[str, Any], where: str) -> int:
    """Return the 0-based decoder layer that is read and reconstructed.

    Raises:
        SAEFormatError: If it is another hook point, or input and output differ.
    """
    place, output = raw.get("hook_point_in"), raw.get("hook_point_out") or raw.get("hook_point_in")
    if place != output:
        raise SAEFormatError(f"{where} maps {place!r} to {output!r} (a transcoder). Use an 'LXR' repository.")
    try:
        layer = layer_of_hook(cast(Any, place))  # it refuses a value that is not text
    except SAEFormatError as error:
        raise SAEFormatError(f"{where}: {error} Use an 'LXR' repository.") from None
    if raw.get("use_glu_encoder"):
        raise SAEFormatError(f"use_glu_encoder is on in {where}: a gated encoder cannot be folded. Use another SAE.")
    return layer


def is_scaled(raw: dict[str, Any], where: str) -> bool:
    """Return True if the weights are for scaled inputs.

    Raises:
        SAEFormatError: If the scale depends on the token.
    """
    mode = raw.get("norm_activation")
    if mode in ("inference", "none"):
        return False
    if mode != "dataset-wise":
        raise SAEFormatError(
            f"norm_activation={mode!r} in {where} depends on each token's norm, so it cannot be folded. "
            "Use an SAE with norm_activation='dataset-wise'."
        )
    return True


def scale_of(raw: dict[str, Any], where: str) -> float:
    """Return s = sqrt(d_model) / average norm, or 1 if the inputs are not scaled.

    Raises:
        SAEFormatError: If the scale depends on the token, or the norm is missing or not above 0.
    """
    if not is_scaled(raw, where):
        return 1.0
    norms = raw.get("dataset_average_activation_norm")
    if not isinstance(norms, dict):
        raise SAEFormatError(
            f"dataset_average_activation_norm in {where} is {norms!r}: expected {{'in': .., 'out': ..}}."
        )
    norm = number(norms, "in", f"dataset_average_activation_norm in {where}")
    if norm <= 0 or norms.get("out", norm) != norm:
        raise SAEFormatError(
            f"dataset_average_activation_norm in {where} is {norms!r}: expected one number > 0 for both, since input "
            "and output are the same hook point."
        )
    return math.sqrt(integer(raw, "d_model", where)) / norm


def read(folder: SAEFolder) -> SAEWeights:
    """Return the folded weights of a Llama Scope folder.

    Raises:
        SAEFormatError: If it is malformed, not a residual-stream SAE, or has a setting that cannot be folded into the
            weights.
    """
    where, path = str(folder.file(CONFIG)), folder.file(WEIGHTS)
    raw = read_json_object(folder.file(CONFIG))
    config = parse_config(raw, where)
    expected = TENSORS if config.decoder_bias else TENSORS[:-1]
    named = matrices(read_tensors(path, expected), expected, path)
    sizes = check_shapes(named, path)
    check_stated_sizes(sizes, (raw.get("d_model"), raw.get("d_sae")), path, where)
    folded = fold_training(**named, scale=config.scale, subtract=config.subtract_b_dec, by_norm=config.decoder_norm)
    threshold = None
    if config.threshold is not None:
        threshold = torch.full((sizes[1],), config.threshold, dtype=torch.float64)
    return SAEWeights(*folded, path, config.architecture, threshold, config.k, config.layer)


def matrices(state: dict[str, torch.Tensor], expected: tuple[str, ...], path: Path) -> dict[str, torch.Tensor]:
    """Return the family's tensors under this library's names. A missing decoder bias is zero.

    Args:
        state (dict[str, Tensor]): The tensors of the file.
        expected (tuple[str, ...]): All of TENSORS, or all except the last.
        path (Path): The file, for errors.

    Raises:
        SAEFormatError: If one is missing, not finite, or not a matrix.
    """
    encoder, b_enc, decoder, *bias = require(state, expected, path)
    W_enc, W_dec = transpose(encoder, TENSORS[0], path), transpose(decoder, TENSORS[2], path)
    return {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": W_dec,
        "b_dec": bias[0] if bias else encoder.new_zeros(len(W_enc)),
    }


def fold_training(
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    *,
    scale: float,
    subtract: bool,
    by_norm: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights on h from weights of training: features are `pre / s`, or `pre / s * n_j`.

    Args:
        scale (float): `s` above.
        subtract (bool): True if b_dec is subtracted from the scaled input.
        by_norm (bool): True if features are multiplied by their decoder rows' norms.
    """
    if subtract:
        b_enc = fold_b_dec_into_b_enc(W_enc, b_enc, b_dec)
    b_enc, b_dec = b_enc.double() / scale, b_dec.double() / scale
    if by_norm:
        W_enc, b_enc, W_dec = fold_decoder_norm(W_enc, b_enc, W_dec)
    return W_enc, b_enc, W_dec, b_dec


READER = Reader(name="llama_scope", layout=f"{CONFIG} + {WEIGHTS}", find=needs(CONFIG, WEIGHTS), read=read)
