"""Whether a guardrail can guard: its weights arrived, and its gate can fire."""

from typing import Any

import torch

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_checks import check_outlier_norm
from sae_unlearn.guardrail.errors import GuardrailError, GuardrailNotReady
from sae_unlearn.guardrail.values import check_tensors


def check_ready(
    name: str, config: SAEGuardrailConfig, encoder: Any, decoder: Any, checked: dict[str, list[Any]]
) -> None:
    """Raise unless the weights arrived and can be a guardrail's. Looks once per set of tensors, so it costs one
    device synchronisation at the first call and none after it.

    Args:
        name: of the guardrail.
        encoder, decoder: a `GuardrailEncoder` and a `GuardrailDecoder`.
        checked: by name, what was looked at last; written here.

    Raises:
        GuardrailNotReady: naming what is missing.
    """
    if torch.compiler.is_compiling():
        return
    seen: list[Any] = [config.threshold, config.statistic, config.hottest, config.outlier_norm]
    for tensor in (*encoder._parameters.values(), *decoder._parameters.values()):
        if tensor.is_meta or hasattr(tensor, "full_tensor"):
            return  # offloaded, or sharded (FSDP): the weights come in just before the encoder runs
        seen += (id(tensor), tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
    if checked.get(name) == seen:
        return
    if config.threshold is None:
        raise GuardrailNotReady(f"Guardrail {name!r} has no threshold, so its gate cannot decide. Set one.")
    if config.evidence == "log_ratio" and config.feature_evidence is None:
        raise GuardrailNotReady(f"Guardrail {name!r} has no feature_evidence, which evidence='log_ratio' needs.")
    if config.never_fires:
        raise GuardrailNotReady(
            f"The threshold of guardrail {name!r} was set to {config.threshold}, which no statistic "
            f"{config.statistic!r} exceeds, so its gate would never fire. Set another."
        )
    named = {
        f"{part}.{key}": tensor.detach().cpu()
        for part, module in (("encoder", encoder), ("decoder", decoder))
        for key, tensor in module.named_parameters()
    }
    empty = [key for key, tensor in named.items() if bool(tensor.isnan().all())]
    if empty:
        raise GuardrailNotReady(
            f"Guardrail {name!r} has no weights ({', '.join(empty)}), so nothing would be guarded. Load them "
            "(`attach_guardrail(model, folder)`), or give an SAE: `attach_guardrail(model, config, sae=sae)`."
        )
    low = [f"{key} ({tensor.dtype})" for key, tensor in named.items() if tensor.dtype.itemsize < 4]
    if low:
        raise GuardrailNotReady(
            f"Guardrail {name!r} has weights below float32 ({', '.join(low)}), which moves its threshold. "
            "Load them by `attach_guardrail`, or by `load_state_dict` without `assign=True`."
        )
    try:
        check_outlier_norm(config)
        check_tensors(named, f"guardrail {name!r}")
    except GuardrailError as error:
        raise GuardrailNotReady(str(error)) from error
    checked[name] = seen
