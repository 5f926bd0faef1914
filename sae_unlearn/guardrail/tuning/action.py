"""`set_action`: what happens to a row that fired."""

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import bare_model
from sae_unlearn.checks import check_choice
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.validation import CHOICES, check_refusal
from sae_unlearn.guardrail.manage import config_named
from sae_unlearn.guardrail.runtime.refusal import message_ids


def set_action(
    model: nn.Module,
    name: str | None = None,
    action: str | None = None,
    *,
    message: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Set the action of a guardrail on a row that fired, from the next forward pass on. It is saved, too.

    `set_action(model, "biology", "record")`, or `set_action(model, "record")` on a model with one guardrail.

    Args:
        model (nn.Module): A model with guardrails.
        name (str, *optional*): The guardrail's adapter name. Not needed if the model has one guardrail.
        action (str, *optional*): "clamp", "record", or "refuse". None takes `name` as the action.
        message (str, *optional*): Answer of a refusal; needed the first time.
        tokenizer (PreTrainedTokenizerBase, *optional*): The model's tokenizer, for the message.

    Raises:
        GuardrailError: If the guardrail or the action does not exist, `name` is missing with several guardrails, or a
            refusal has no message. Nothing is changed then.
    """
    if action is None:
        name, action = None, name
    config = config_named(name, model)
    check_choice("action", action, CHOICES["action"], GuardrailError)
    before = (config.action, config.refusal, config.refusal_ids, config.refusal_compared)
    if message is not None:
        ids = message_ids(message, tokenizer, getattr(bare_model(model), "generation_config", None))
        config.refusal, config.refusal_ids = message, ids
        config.refusal_compared = True  # type: ignore[misc]  # a ClassVar, so that it is not a field
    config.action = str(action)
    try:
        check_refusal(config)
    except GuardrailError:
        config.action, config.refusal, config.refusal_ids, compared = before
        config.refusal_compared = compared  # type: ignore[misc]
        raise
