"""`fit_guardrail`: from a forget corpus and a retain corpus to a guardrail, with forward passes only.

Every row of the corpora is run through the model once, up to the guarded layer:

1. selection rows: sums of activations, scores, the N features (see `selection`);
2. threshold rows of both corpora: their statistic, and the threshold (see `calibration`);
3. report rows, used by neither: fire rates on text that the gate was not fitted on.

The published procedure uses all rows for every step; `preset="faithful"` does that, in two passes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.attach import detach_guardrail, place_guardrail
from sae_unlearn.guardrail.base_model.same_guardrail import warn_of_same_weights, with_these_weights
from sae_unlearn.guardrail.fit.options import plan_fit
from sae_unlearn.guardrail.fit.passes import FitPasses
from sae_unlearn.guardrail.fit.steps import Fit
from sae_unlearn.guardrail.fit.topk_approximation import with_rule_for
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.storage.reading import Artefact
from sae_unlearn.options.field import merged, takes_options
from sae_unlearn.options.fit import GuardrailFitConfig
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.choice import AUTO, sae_for


def place_fitted(model: nn.Module, artefacts: Mapping[str, Artefact], passes: Iterable[FitPasses]) -> PeftModel:
    """Attach fitted guardrails by name, and delete the checkpoints of `passes`.

    If that fails or is interrupted, the model is unchanged: it has all of the guardrails or none.
    """
    guarded, placed = model, []
    try:
        for name, artefact in artefacts.items():
            for other in list(with_these_weights(guard_layers(guarded), artefact.config.layer, artefact.tensors))[:1]:
                warn_of_same_weights(other)  # an error would lose the fit
            guarded = place_guardrail(guarded, artefact, name)
            placed.append(name)
        for each in passes:
            if each.checkpoint is not None:
                each.checkpoint.remove()
    except BaseException:
        for name in placed:
            detach_guardrail(guarded, name)
        raise
    return guarded


@takes_options(GuardrailFitConfig)
@as_guardrail_error()
def fit_guardrail(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sae: SparseAutoencoder | str,
    forget: Any = None,
    retain: Any = None,
    *,
    config: GuardrailFitConfig | None = None,
    **options: Any,
) -> PeftModel:
    """Fit a guardrail for the topic of `forget` with forward passes only, and attach it to the model.

    Under `accelerate launch` every process gets the same arguments, runs its share of the batches, and ends with the
    same guardrail; a process group must exist (`accelerate.PartialState()`, or the command line). While a fit runs,
    guardrails that are already on the model are disabled in all threads.

    Args:
        model (nn.Module): A causal language model of transformers, in any dtype, device map or quantization; or a
            `PeftModel` that the guardrail joins.
        tokenizer (PreTrainedTokenizerBase or None): Tokenizer of the model; None without text.
        sae (SparseAutoencoder or str): An SAE of one of the model's layers; what `SparseAutoencoder.from_pretrained`
            takes; or `"auto"` for the suggested one of `published_saes`.
        forget (iterable, *optional*): Text of the topic: a list of texts, a `datasets.Dataset` with a `text_column`, or
            an iterable of either or of batches with `input_ids`. At least 8 documents; start with 100 paragraphs.
        retain (iterable, *optional*): Other text, in the format and at the lengths of deployment, with near neighbors
            of the topic. At least 32 documents.
        config (GuardrailFitConfig, *optional*): The options; the defaults without one.
        **options (Any): Any field of `GuardrailFitConfig` by its name, in place of its value in `config`.

    Returns:
        `PeftModel`: Ready to use. `peft_config[name].calibration` holds the measurements.

    Raises:
        GuardrailError: If a value does not fit, before or after the passes. The message names it and the fix, and the
            model is unchanged.

    Example:

    ```python
    guarded = fit_guardrail(model, tokenizer, sae, forget=biology, retain=other, chat_template=True)
    guarded.save_pretrained("forget-biology")
    ```
    """
    given = merged(GuardrailFitConfig, config, options, GuardrailError)
    chosen = sae_for(sae, model, given.layer)
    if isinstance(sae, str) and sae == AUTO:
        given = with_rule_for(given, chosen)
    plan = plan_fit(model, tokenizer, chosen, forget, retain, given)
    fit = Fit(plan)
    fit.corpora.read("forget", forget)
    fit.corpora.read("retain", retain)
    fit.choose()
    fit.calibrate()
    return place_fitted(model, {plan.name: fit.artefact()}, [fit.passes])
