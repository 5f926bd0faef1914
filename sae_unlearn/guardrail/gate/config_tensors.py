"""Tensors of a config's lists, made once for each device, since making one waits for the device."""

import torch
from torch import Tensor

from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.gate.windowed import CountTerms


LARGEST_VOCABULARY = 2**24  # larger ids are not tokens, and must not fill the memory


class ConfigTables:
    """Tables of the guardrails at one layer.

    Args:
        longest (int, *optional*): Largest number of tokens of a row, if the engine has one.
        vocabulary (int, *optional*): Number of token ids of the model, if the engine sends no others.

    Attributes:
        made: By purpose, numbers and device.
    """

    def __init__(self, longest: int | None = None, vocabulary: int | None = None) -> None:
        self.longest, self.vocabulary = longest, vocabulary
        self.made: dict[tuple[str, tuple[float, ...], torch.device], Tensor] = {}

    def content(self, special: tuple[int, ...], device: torch.device) -> Tensor:
        """Return `[max(special) + 2]` or `[vocabulary]` bool by token id, False at special ones.

        Without a vocabulary the last entry stands for all higher ids. A lookup is one kernel. `torch.isin` is several,
        and waits for the device if there are many special ids.
        """
        key = ("content", special, device)
        if key not in self.made:
            within = [token for token in special if token < LARGEST_VOCABULARY]
            table = torch.ones(max(max(within, default=-1) + 2, self.vocabulary or 0), dtype=torch.bool)
            table[within] = False
            self.made[key] = table.to(device)
        return self.made[key]

    def none_of(self, special: tuple[int, ...], input_ids: Tensor, device: torch.device) -> Tensor:
        """Return the tokens that are not in `special`, `[batch, seq]` bool on `device`."""
        table, ids = self.content(special, device), input_ids.to(device)
        return table.take(ids if self.vocabulary else ids.clamp(max=len(table) - 1))

    def message(self, ids: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the message `m_1 ... m_n` and `m_n` again, which follows itself: `[n + 1]`."""
        return self._kept("message", (*ids, ids[-1]), torch.long, device)

    def evidence(self, config: SAEGuardrailConfig, device: torch.device) -> Tensor | None:
        """Return the evidence of each active feature, `[N]` float32, or None if a hot token counts 1."""
        if config.feature_evidence is None:
            return None
        return self._kept("evidence", tuple(config.feature_evidence), torch.float32, device)

    def zero(self, device: torch.device) -> Tensor:
        """Return 0, `[1]` float32. To make one is an operator of its own."""
        return self._kept("zero", (0.0,), torch.float32, device)

    def by_count(self, config: SAEGuardrailConfig, device: torch.device) -> Tensor | None:
        """Return the windowed statistic's `CountTerms` for 0 up to `longest` tokens, `[longest + 1, 3]`.

        None if no longest row is known, or the statistic is another.
        """
        if self.longest is None or config.statistic != "windowed":
            return None
        given = config.statistic_kwargs
        constants = given.min_tokens, given.row_variance, given.token_variance, given.other_mean, given.drift
        key = ("by_count", (self.longest, *constants), device)
        if key not in self.made:
            counts = torch.arange(self.longest + 1, dtype=torch.float32, device=device)
            self.made[key] = torch.stack(CountTerms.of(counts, given), dim=1)
        return self.made[key]

    def _kept(self, what: str, values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():  # compiled code keeps the values as a constant
            return torch.tensor(values, dtype=dtype, device=device)
        key = (what, values, device)
        if key not in self.made:
            self.made[key] = torch.tensor(values, dtype=dtype, device=device)
        return self.made[key]
