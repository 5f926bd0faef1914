"""The hooks on the model with its head: what it was called with on the way in, and the message of rows that are refused
on the way out."""

import inspect
from typing import Any

from torch import nn

from sae_unlearn.guardrail.runtime.call_context import CALL, NEXT, note, noted
from sae_unlearn.guardrail.runtime.hooks import ModelCall, by_name
from sae_unlearn.guardrail.runtime.refusal import refuse


class ModelHooks:
    """Notes the token ids, the mask and `logits_to_keep` of a call, and writes what was refused into what it gives."""

    def __init__(self, model: nn.Module) -> None:
        self.names = list(inspect.signature(model.forward).parameters)

    def install(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.register_forward_hook(self.after, with_kwargs=True, always_call=True)

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = by_name(self.names, args, kwargs)
        wanted = given.get("logits_to_keep")
        wanted = wanted if isinstance(wanted, int) and wanted > 0 else None
        note(CALL, ModelCall(given.get("input_ids"), given.get("attention_mask"), wanted))
        note(NEXT, None)  # of a call to the backbone alone, which has no logits

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call: ModelCall | None = noted(CALL)
        choices = noted(NEXT)
        note(CALL, None)
        note(NEXT, None)
        return None if choices is None else refuse(output, choices, None if call is None else call.wanted)
