"""Settings of vLLM that a guardrail does not support. They are refused by name at the engine's start."""

import warnings
from typing import Any

from sae_unlearn.checks import check_integer
from sae_unlearn.errors import GuardrailError, GuardrailUnsupported
from sae_unlearn.guardrail.base_model.match import check_longest, check_special
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.packed import check_packable
from sae_unlearn.guardrail.runtime.refusal import check_message


TESTED = (0, 32)
"""The version of vLLM that the plugin was written and tested with."""


def check_version(version: str, parts: tuple[Any, ...]) -> None:
    """Raise below the tested version of vLLM, and warn above it.

    Raises:
        GuardrailUnsupported: If the version is older.
    """
    tested = ".".join(map(str, TESTED))
    if tuple(parts[:2]) < TESTED:
        raise GuardrailUnsupported(f"vllm={version}: expected {tested} or newer. Install vllm=={tested}.")
    if tuple(parts[:2]) > TESTED:
        warnings.warn(f"vllm={version}: the guardrail was tested with {tested} only. Compare records.", stacklevel=2)


def check_engine(vllm_config: Any, untested: bool = False) -> None:
    """Raise if the engine has a setting that a guardrail cannot work with.

    Args:
        vllm_config (VllmConfig): The engine's settings.
        untested (bool, *optional*, defaults to `False`): See `Settings`.

    Raises:
        GuardrailUnsupported: Naming the setting and what to do.
    """
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    graphs = str(getattr(compilation.cudagraph_mode, "name", compilation.cudagraph_mode))
    on_cpu = getattr(vllm_config.device_config, "device_type", "") == "cpu"
    refused = {
        "--kv-transfer-config": (vllm_config.kv_transfer_config is not None, "blocks from elsewhere carry no states"),
        "--enable-dbo": (parallel.use_ubatching, "two half batches run at once"),
        "--prefill-context-parallel-size": (parallel.prefill_context_parallel_size > 1, "rows are split over ranks"),
        "--decode-context-parallel-size": (parallel.decode_context_parallel_size > 1, "slots are split over ranks"),
        "--enable-prompt-embeds": (vllm_config.model_config.enable_prompt_embeds, "embeddings have no token ids"),
        "--runner pooling": (vllm_config.model_config.runner_type == "pooling", "only generation is guarded"),
        "--enable-sleep-mode": (vllm_config.model_config.enable_sleep_mode, "states are not offloaded"),
        "--kv-sharing-fast-prefill": (vllm_config.cache_config.kv_sharing_fast_prefill, "late layers skip tokens"),
        "sequence parallelism (pass_config.enable_sp)": (
            getattr(compilation.pass_config, "enable_sp", False),
            "ranks hold different tokens",
        ),
        "VLLM_USE_V2_MODEL_RUNNER": (
            not on_cpu and vllm_config.use_v2_model_runner and not untested,
            "only the first model runner was tested; set it to 0",
        ),
        "CUDA graphs": (
            not on_cpu and graphs != "NONE" and not (untested and graphs == "PIECEWISE"),
            "not tested; pass --enforce-eager",
        ),
    }
    for name, (found, why) in refused.items():
        if found:
            raise GuardrailUnsupported(f"{name}: expected none with a guardrail ({why}). Start vLLM without it.")


def check_guardrail(config: SAEGuardrailConfig, name: str, vllm_config: Any) -> None:
    """Raise if a guardrail does not fit the model, or the engine's settings.

    Raises:
        GuardrailError: If it was fitted for another model, or packed rows cannot be judged.
        GuardrailUnsupported: If `gate_scope="sequence"` meets prompts in pieces.
    """
    check_packable(config)
    text = vllm_config.model_config.hf_text_config
    for field, expected, found in (
        ("hidden_size", config.base_model.hidden_size, text.hidden_size),
        ("num_layers", config.base_model.num_layers, text.num_hidden_layers),
    ):
        if expected not in (None, found):
            raise GuardrailError(f"{field}={expected} of {name}: expected {found}, the model's. Use its own model.")
    check_integer("layer", config.layer, 0, text.num_hidden_layers - 1, GuardrailError, f"Fit {name} again.")
    check_special(config, text.vocab_size)
    check_longest(config, vllm_config.model_config.max_model_len)
    if config.action == "refuse":
        check_message(config, text.vocab_size)
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise GuardrailUnsupported(
                f'action="refuse" of {name}: expected --pipeline-parallel-size 1, with layer and head in one worker.'
            )
    if config.gate_scope == "sequence":
        _check_whole_prompts(name, vllm_config)


def _check_whole_prompts(name: str, vllm_config: Any) -> None:
    flags = {
        "--no-enable-prefix-caching": vllm_config.cache_config.enable_prefix_caching,
        "--no-enable-chunked-prefill": vllm_config.scheduler_config.enable_chunked_prefill,
    }
    missing = [flag for flag, found in flags.items() if found]
    if missing:
        raise GuardrailUnsupported(
            f'gate_scope="sequence" of {name} judges a prompt whole: expected {" and ".join(missing)}. Pass '
            f"{'it' if len(missing) == 1 else 'them'}, or fit with for_serving=True (--for-serving)."
        )
