from typing import Any, Protocol

from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_tensors import ConfigTables
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


class Step(Protocol):
    """One token of every row, of a guardrail with `counting="content"` and `action="clamp"`, for some statistics."""

    def __call__(
        self,
        hidden: Tensor,
        onto: Tensor,
        encoder: Any,
        decoder: Any,
        config: SAEGuardrailConfig,
        tables: ConfigTables,
        ids: Tensor | None,
        mask: Tensor | None,
        earlier: Tensor | None,
        history: DynamicGateHistory,
    ) -> Tensor:
        """Guard the token.

        Args:
            hidden: `[batch, 1, d_in]`, the residual stream.
            onto: `[batch, 1, d_in]`, what the edit is added to: the same, or what another guardrail made of it.
            encoder, decoder: the guardrail's, in float32.
            config, tables: its config, and the lists of it as tensors.
            ids: token ids `[batch, 1]`; None if they are not known.
            mask: `[batch, 1]`, not 0 where the token is no padding; None if none is.
            earlier: `[batch or 1, past]`, not 0 where the mask shows a token of an earlier pass, which it must have
                shown then, too (see `shown`); None if the host knows that it did.
            history: the rows' states of the gate, to which the next are added.

        Returns:
            `onto` and the edit, in its dtype.
        """
