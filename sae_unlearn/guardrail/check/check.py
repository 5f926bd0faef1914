"""`check_guardrail`: checks of base model, dose, gate and refusal of a guardrail on a model."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import bare_model, input_embeddings
from sae_unlearn.errors import as_guardrail_error
from sae_unlearn.guardrail.check.findings import (
    CheckReport,
    Finding,
    apart,
    belonging,
    dose,
    fires,
    message,
    not_measured,
    same_as_recorded,
    stays_quiet,
)
from sae_unlearn.guardrail.check.probe import stored_probe
from sae_unlearn.guardrail.fit.dose import EditMoments
from sae_unlearn.guardrail.gate.offline import content_tokens, read_batch, rows_as_fitted, unguarded_residuals
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.reading import Artefact
from sae_unlearn.guardrail.summary import fit_warnings
from sae_unlearn.guardrail.weights import GuardrailEncoder


@dataclass(frozen=True)
class _Measured:
    """Measurements on some rows: statistics `[n]`, norms of all residuals, and moments of the edit."""

    statistics: Tensor
    norms: Tensor
    moments: EditMoments


@as_guardrail_error()
def check_guardrail(
    model: nn.Module,
    source: str | os.PathLike[str] | GuardrailFolder,
    tokenizer: PreTrainedTokenizerBase | None = None,
    forget: Iterable[Any] | None = None,
    retain: Iterable[Any] | None = None,
    *,
    text_column: str = "text",
    batch_size: int = 8,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> CheckReport:
    """Check that a guardrail will work on a model, which is unchanged and runs up to the guarded layer.

    Args:
        model (Module): The model to attach it to.
        source (str, PathLike or GuardrailFolder): A local folder, a Hub repository, or a `GuardrailFolder`.
        tokenizer (PreTrainedTokenizerBase, *optional*): The model's tokenizer, for text in `forget` or `retain` and for
            the text of a refusal.
        forget (Iterable[Any], *optional*): Rows of the topic, as for `fit_guardrail`. Defaults to the rows stored with
            `store_probe`, if any.
        retain (Iterable[Any], *optional*): Other rows, likewise.
        text_column (str, *optional*, defaults to "text"): Column of datasets and mappings that holds the text.
        batch_size (int, *optional*, defaults to 8): Rows per forward pass.
        revision (str, *optional*): Branch, tag or commit of the Hub repository.
        subfolder (str, *optional*): Folder inside the source.
        token (str or bool, *optional*): As in `huggingface_hub`.
        cache_dir (str or PathLike, *optional*): As in `huggingface_hub`.
        local_files_only (bool, *optional*, defaults to False): As in `huggingface_hub`.

    Returns:
        The findings, in sentences.

    Raises:
        GuardrailError: If `source` has no guardrail, or it is malformed.
    """
    artefact = GuardrailFolder.open(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    ).artefact()
    config, bare = artefact.config, bare_model(model)
    belongs = belonging(config, bare)
    if belongs.subject == "shape":
        return CheckReport((belongs,))  # nothing can be measured on a model of another shape
    findings = [belongs]
    if artefact.damage is not None:
        findings.append(
            Finding("seal", "problem", f"{artefact.damage}. It cannot be attached. Fit or download it again.")
        )
    probe, malformed = stored_probe(config, input_embeddings(bare).weight.shape[0])
    if malformed:
        findings.append(Finding("probe", "problem", malformed))
    measured: dict[str, _Measured] = {}
    for role, corpus in (("forget", forget), ("retain", retain)):
        rows = probe.get(role, []) if corpus is None else rows_as_fitted(corpus, tokenizer, role, config, text_column)
        if not rows:
            findings.append(not_measured(role))
            continue
        measured[role] = _measure(artefact, bare, rows, batch_size)
        statistics = measured[role].statistics
        if corpus is None:
            findings.append(same_as_recorded(role, statistics, config))
        else:
            judge = fires if role == "forget" else stays_quiet
            findings.append(judge(statistics, config))
    if forget is not None and retain is not None:  # two stored rows are too few to compare
        findings.append(apart(measured["forget"].statistics, measured["retain"].statistics))
    findings += message(config, tokenizer)
    findings += dose(config, _edit_size(measured, artefact.tensors["decoder.clamp"]))
    findings += [Finding("fit", "warning", text) for text in fit_warnings(config.calibration or {})]
    return CheckReport(tuple(findings))


def _measure(artefact: Artefact, model: nn.Module, rows: list[list[int]], batch_size: int) -> _Measured:
    config, tensors = artefact.config, artefact.tensors
    encoder = GuardrailEncoder(config.width, config.num_encoded)
    for name, parameter in encoder.named_parameters():
        parameter.data.copy_(tensors[f"encoder.{name}"])
    moments = EditMoments(tensors["decoder.weight"], config.clamp_mode)
    statistics, norms = torch.zeros(len(rows)), []
    for batch in unguarded_residuals(model, rows, config.layer, batch_size):
        reading = read_batch(batch, encoder, config)
        statistics[batch.index] = reading.statistics
        norms.append(batch.residual[content_tokens(batch, config)].float().norm(dim=-1).cpu())
        moments.add(reading.hot_activations)
    return _Measured(statistics, torch.cat(norms), moments)


def _edit_size(measured: dict[str, _Measured], clamp: Tensor) -> float | None:
    """Return the edit's norm on forget rows over the median residual norm; None without a hot token."""
    forget = measured.get("forget")
    if forget is None or not forget.moments.tokens:
        return None
    return forget.moments.norm(clamp) / float(torch.cat([part.norms for part in measured.values()]).median())
