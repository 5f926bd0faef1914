"""Tensors of a config's lists, made once for each device, since making one waits for the device."""

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig


LARGEST_VOCABULARY = 2**24  # larger ids are not tokens, and must not fill the memory


class ConfigTables:
    """Tables of the guardrails at one layer.

    Attributes:
        made: By purpose, numbers and device.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[str, tuple[float, ...], torch.device], Tensor] = {}

    def content(self, special: tuple[int, ...], device: torch.device) -> Tensor:
        """Return `[max(special) + 2]` bool by token id, False at special ones.

        The last entry stands for all higher ids. A lookup is one kernel. `torch.isin` is several, and waits for the
        device if there are many special ids.
        """
        key = ("content", special, device)
        if key not in self.made:
            within = [token for token in special if token < LARGEST_VOCABULARY]
            table = torch.ones(max(within, default=-1) + 2, dtype=torch.bool)
            table[within] = False
            self.made[key] = table.to(device)
        return self.made[key]

    def none_of(self, special: tuple[int, ...], input_ids: Tensor, device: torch.device) -> Tensor:
        """Return the tokens that are not in `special`, `[batch, seq]` bool on `device`."""
        table = self.content(special, device)
        return table.take(input_ids.to(device).clamp(max=len(table) - 1))

    def message(self, ids: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the message `m_1 ... m_n` and `m_n` again, which follows itself: `[n + 1]`."""
        return self._kept("message", (*ids, ids[-1]), torch.long, device)

    def evidence(self, config: SAEGuardrailConfig, device: torch.device) -> Tensor | None:
        """Return the evidence of each active feature, `[N]` float32, or None if a hot token counts 1."""
        if config.feature_evidence is None:
            return None
        return self._kept("evidence", tuple(config.feature_evidence), torch.float32, device)

    def _kept(self, what: str, values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():  # compiled code keeps the values as a constant
            return torch.tensor(values, dtype=dtype, device=device)
        key = (what, values, device)
        if key not in self.made:
            self.made[key] = torch.tensor(values, dtype=dtype, device=device)
        return self.made[key]
