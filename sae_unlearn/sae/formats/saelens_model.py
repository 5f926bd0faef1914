"""Which residual stream a SAELens SAE reads: the model's own, or that of a model whose weights were processed.

SAELens trains on a TransformerLens model, loaded with `model_from_pretrained_kwargs`. What such a setting does to the
residual stream is known here, setting by setting; one that is not known is refused.
"""

from __future__ import annotations

from typing import Any

from sae_unlearn.errors import SAEFormatError


KWARGS = "model_from_pretrained_kwargs"
CENTERING = "center_writing_weights"

# Settings of TransformerLens' and transformers' `from_pretrained` that leave each token's residual stream as it is:
# they change weights that read it, the unembedding, precision, place, padding, or which checkpoint is loaded.
HARMLESS = {
    *("fold_ln", "fold_value_biases", "center_unembed", "refactor_factored_attn_matrices"),
    *("hf_model", "tokenizer", "model_name", "revision", "checkpoint_index", "checkpoint_value", "first_n_layers"),
    *("dtype", "torch_dtype", "load_in_4bit", "load_in_8bit", "quantization_config"),
    *("device", "device_map", "max_memory", "n_devices", "move_to_device", "low_cpu_mem_usage", "offload_folder"),
    *("attn_implementation", "use_cache", "n_ctx", "default_padding_side", "default_prepend_bos"),
    *("trust_remote_code", "cache_dir", "local_files_only", "force_download", "token", "use_auth_token"),
}

# Models with LayerNorm everywhere, which TransformerLens centers; of models with RMSNorm it leaves the weights alone.
LAYER_NORM_MODELS = ("gpt2", "gpt-neo", "gpt-j", "pythia", "tiny-stories", "tinystories")

# Settings that SAELens' own list of SAEs adds to these repositories, whose files do not say them
# (`config_overrides` in `pretrained_saes.yaml`; SAELens #279). They go before what the files say.
_CENTERED = {KWARGS: {CENTERING: True}}
UNSAID: dict[str, dict[str, Any]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": _CENTERED,
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": _CENTERED,
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
}


def unsaid_settings(label: str) -> dict[str, Any]:
    """The settings that the files of the repository in `label` do not say; empty for any other.

    Args:
        label: as `SAEFolder.label`; the name of a downloaded copy's folder, or of the Hub's cache, counts as well.
    """
    parts = label.split("/")
    for repository, settings in UNSAID.items():
        if {repository.rpartition("/")[2], "models--" + repository.replace("/", "--")} & set(parts):
            return settings
    return {}


def reads_centered(cfg: dict[str, Any], where: str) -> bool:
    """Whether the SAE reads the residual stream without each token's mean over the width.

    Raises:
        SAEFormatError: a setting whose effect on the residual stream is not known.
    """
    kwargs = cfg.get(KWARGS) or {}
    if not isinstance(kwargs, dict):
        raise SAEFormatError(f"{KWARGS} in {where} is {kwargs!r:.40}; expected an object.")
    for name, value in kwargs.items():
        if name != CENTERING and name not in HARMLESS and value not in (None, False):
            raise SAEFormatError(
                f"{KWARGS} in {where} sets {name!r:.40}={value!r:.20}, whose effect on the residual stream is not "
                "known. Use an SAE of the unprocessed model."
            )
    centered = kwargs.get(CENTERING) or False
    if not isinstance(centered, bool):
        raise SAEFormatError(f"{CENTERING} in {where} is {centered!r:.40}; expected true or false.")
    if centered and not any(family in str(cfg.get("model_name")).lower() for family in LAYER_NORM_MODELS):
        raise SAEFormatError(
            f"{CENTERING} is on in {where} for model_name={cfg.get('model_name')!r:.40}; expected one of the families "
            f"{', '.join(LAYER_NORM_MODELS)}. Set it to false if the model has RMSNorm."
        )
    return centered
