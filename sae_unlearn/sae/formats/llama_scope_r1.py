"""Reader of Llama Scope R1 Distill: `config.json` + `sae_weights.safetensors`.

Each layer has a folder (".../L15R"). The weights are those of training, with the equations of Llama Scope
(`llama_scope.py`) and two differences. Every feature has its own threshold, stored as its logarithm; it is compared
with `pre * n_j` of the scaled input (with `pre` if sparsity_include_decoder_norm is off), so it is folded by s. The
average norm in s is stored with the weights, as "dataset_average_activation_norm.<hook point>".

Source: https://github.com/OpenMOSS/Language-Model-SAEs (`SparseAutoEncoder.encode`, `_get_full_state_dict`),
https://huggingface.co/fnlp/Llama-Scope-R1-Distill, and SAELens' `llama_scope_r1_distill` loader, which leaves s and n_j
to its user.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.config_json import integer, number, read_json_object, switch
from sae_unlearn.sae.files.safetensors_header import read_tensors
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights
from sae_unlearn.sae.formats.llama_scope import TENSORS, fold_training, is_scaled, layer_from, matrices
from sae_unlearn.sae.formats.saelens_config import CONFIG as SAELENS_CONFIG
from sae_unlearn.sae.validate import check_shapes, check_stated_sizes, require


CONFIG = "config.json"
WEIGHTS = "sae_weights.safetensors"
THRESHOLD = "log_jumprelu_threshold"


def find(names: Collection[str]) -> tuple[str, ...] | None:
    """Return the two files, unless SAELens' configuration exists: its weights have the same name."""
    return (CONFIG, WEIGHTS) if {CONFIG, WEIGHTS} <= set(names) and SAELENS_CONFIG not in names else None


def read(folder: SAEFolder) -> SAEWeights:
    """Return the folded weights of a Llama Scope R1 Distill folder.

    Raises:
        SAEFormatError: If it is malformed, not a residual-stream SAE, or has a setting that cannot be folded into the
            weights.
    """
    where, path = str(folder.file(CONFIG)), folder.file(WEIGHTS)
    raw = read_json_object(folder.file(CONFIG))
    act_fn = raw.get("act_fn")
    if not isinstance(act_fn, str) or act_fn.lower() != "jumprelu":
        raise SAEFormatError(f"act_fn={act_fn!r:.80} in {where}: expected 'jumprelu'.")
    layer, decoder_bias = layer_from(raw, where), switch(raw, "use_decoder_bias", where)
    norm = f"dataset_average_activation_norm.{raw['hook_point_in']}"
    expected = TENSORS if decoder_bias else TENSORS[:-1]
    state = read_tensors(path, (*expected, THRESHOLD, norm))
    named = matrices(state, expected, path) | {"threshold": require(state, (THRESHOLD,), path)[0].double().exp()}
    sizes = check_shapes(named, path)
    d_model = integer(raw, "d_model", where)
    check_stated_sizes(sizes, (d_model, d_model * number(raw, "expansion_factor", where)), path, where)
    scale = 1.0
    if is_scaled(raw, where):
        (average,) = require(state, (norm,), path)
        if average.numel() != 1 or average.item() <= 0:
            raise SAEFormatError(f"{norm} in {path} is {average.tolist()!r:.80}: expected one number > 0.")
        scale = math.sqrt(d_model) / average.item()
    threshold = named.pop("threshold") / scale
    folded = fold_training(
        **named,
        scale=scale,
        subtract=decoder_bias and switch(raw, "apply_decoder_bias_to_pre_encoder", where),
        by_norm=switch(raw, "sparsity_include_decoder_norm", where),
    )
    return SAEWeights(*folded, path, "jumprelu", threshold, layer=layer)


READER = Reader(name="llama_scope_r1", layout=f"{CONFIG} + {WEIGHTS}", find=find, read=read)
