"""Effect of TransformerLens' weight processing on the residual stream that a SAELens SAE reads.

SAELens trains on a TransformerLens model, loaded with `model_from_pretrained_kwargs`. This module lists the effect of
each setting on the residual stream; an unknown setting is refused.
"""

from __future__ import annotations

from typing import Any

from sae_unlearn.errors import SAEFormatError


KWARGS = "model_from_pretrained_kwargs"
CENTERING = "center_writing_weights"

# Settings of TransformerLens' and transformers' `from_pretrained` that do not change a token's residual stream: they
# change weights that read it, the unembedding, precision, device, padding, or the checkpoint.
HARMLESS = {
    *("fold_ln", "fold_value_biases", "center_unembed", "refactor_factored_attn_matrices"),
    *("hf_model", "tokenizer", "model_name", "revision", "checkpoint_index", "checkpoint_value", "first_n_layers"),
    *("dtype", "torch_dtype", "load_in_4bit", "load_in_8bit", "quantization_config"),
    *("device", "device_map", "max_memory", "n_devices", "move_to_device", "low_cpu_mem_usage", "offload_folder"),
    *("attn_implementation", "use_cache", "n_ctx", "default_padding_side", "default_prepend_bos"),
    *("trust_remote_code", "cache_dir", "local_files_only", "force_download", "token", "use_auth_token"),
}

# Models with LayerNorm everywhere, which TransformerLens centers. It does not change models with RMSNorm.
LAYER_NORM_MODELS = ("gpt2", "gpt-neo", "gpt-j", "pythia", "tiny-stories", "tinystories")

# Settings that SAELens' list of SAEs adds to these repositories, because their files lack them
# (`config_overrides` in `pretrained_saes.yaml`; SAELens #279). They replace the settings of the files.
_CENTERED = {KWARGS: {CENTERING: True}}
UNSAID: dict[str, dict[str, Any]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": _CENTERED,
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": _CENTERED,
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
}


def unsaid_settings(label: str) -> dict[str, Any]:
    """Return the settings that the files of the repository in `label` lack; empty for any other.

    Args:
        label (str): As `SAEFolder.label`. The name of a downloaded copy's folder or of the Hub's cache matches, too.
    """
    parts = label.split("/")
    for repository, settings in UNSAID.items():
        if {repository.rpartition("/")[2], "models--" + repository.replace("/", "--")} & set(parts):
            return settings
    return {}


def reads_centered(cfg: dict[str, Any], where: str) -> bool:
    """Return True if the SAE reads the residual stream without each token's mean over the width.

    Raises:
        SAEFormatError: If the effect of a setting on the residual stream is unknown.
    """
    kwargs = cfg.get(KWARGS) or {}
    if not isinstance(kwargs, dict):
        raise SAEFormatError(f"{KWARGS} in {where} is {kwargs!r:.40}: expected an object.")
    for name, value in kwargs.items():
        if name != CENTERING and name not in HARMLESS and value not in (None, False):
            raise SAEFormatError(
                f"{KWARGS} in {where} sets {name!r:.40}={value!r:.20}, whose effect on the residual stream is "
                "unknown. Use an SAE of the unprocessed model."
            )
    centered = kwargs.get(CENTERING) or False
    if not isinstance(centered, bool):
        raise SAEFormatError(f"{CENTERING} in {where} is {centered!r:.40}: expected true or false.")
    if centered and not any(family in str(cfg.get("model_name")).lower() for family in LAYER_NORM_MODELS):
        raise SAEFormatError(
            f"{CENTERING} is on in {where} for model_name={cfg.get('model_name')!r:.40}: expected one of the families "
            f"{', '.join(LAYER_NORM_MODELS)}. Set it to false if the model has RMSNorm."
        )
    return centered
