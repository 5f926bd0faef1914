"""A config's lists as tensors on a device, made once for each, since making one waits for the device."""

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig


LARGEST_VOCABULARY = 2**24  # ids past it are no token's; a config that names some must not fill the memory


class ConfigTables:
    """The tables of the guardrails at one layer.

    Attributes:
        made: by what they are for, the numbers, and the device.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[str, tuple[float, ...], torch.device], Tensor] = {}

    def content(self, special: tuple[int, ...], device: torch.device) -> Tensor:
        """`[max(special) + 2]` bool by token id: False at special ones. The last entry stands for all higher ids.

        A look-up is one kernel, and `torch.isin` is several and waits for the device where there are many special ids.
        """
        key = ("content", special, device)
        if key not in self.made:
            within = [token for token in special if token < LARGEST_VOCABULARY]
            table = torch.ones(max(within, default=-1) + 2, dtype=torch.bool)
            table[within] = False
            self.made[key] = table.to(device)
        return self.made[key]

    def none_of(self, special: tuple[int, ...], input_ids: Tensor, device: torch.device) -> Tensor:
        """`[batch, seq]` bool on `device`: the tokens that are none of `special`."""
        table = self.content(special, device)
        return table.take(input_ids.to(device).clamp(max=len(table) - 1))

    def message(self, ids: tuple[int, ...], device: torch.device) -> Tensor:
        """`[n + 1]`: the message `m_1 ... m_n`, then `m_n` again, which follows itself."""
        return self._kept("message", (*ids, ids[-1]), torch.long, device)

    def evidence(self, config: SAEGuardrailConfig, device: torch.device) -> Tensor | None:
        """`[N]` float32, what each active feature adds to its token; None if a hot token counts 1."""
        if config.feature_evidence is None:
            return None
        return self._kept("evidence", tuple(config.feature_evidence), torch.float32, device)

    def _kept(self, what: str, values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():  # compiled code holds the values as a constant
            return torch.tensor(values, dtype=dtype, device=device)
        key = (what, values, device)
        if key not in self.made:
            self.made[key] = torch.tensor(values, dtype=dtype, device=device)
        return self.made[key]
