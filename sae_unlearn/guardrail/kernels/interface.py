"""Interface of the implementations of one decoding step."""

from typing import Any, Protocol

from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


class Step(Protocol):
    """One token of every row, of a guardrail with `counting="content"` and `action="clamp"`."""

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
            hidden (Tensor): `[batch, 1, d_in]`, the residual stream.
            onto (Tensor): `[batch, 1, d_in]`, the stream that is edited: `hidden`, or the output of another guardrail.
            encoder, decoder (Any): Of the guardrail, in float32.
            config (SAEGuardrailConfig): Its config.
            tables (ConfigTables): The lists of the config as tensors.
            ids (Tensor or None): Token ids `[batch, 1]`. None if unknown.
            mask (Tensor or None): `[batch, 1]`, not 0 if the token is not padding. None if no token is padding.
            earlier (Tensor or None): `[batch or 1, past]`, not 0 where the mask shows a token of an earlier pass, which
                it must have shown in that pass too (see `shown`). None if the host knows that it did.
            history (DynamicGateHistory): The rows' states of the gate, to which the next are appended.

        Returns:
            Tensor: `onto` plus the edit, in its dtype.
        """
