"""One guardrail of a vLLM worker: its weights, its table, and its edit."""

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.digest import sha256
from sae_unlearn.guardrail.config_parts.layout import config_digest
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.packed import state_size
from sae_unlearn.guardrail.gate.packed_step import Judged, PackedStep, judge
from sae_unlearn.guardrail.gate.slot_table import SlotTable
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.weights import GuardrailDecoder, GuardrailEncoder


class Guard:
    """A guardrail that was read from a folder.

    Attributes:
        name: by which requests and records know it.
        config: its `SAEGuardrailConfig`.
        digest: SHA-256 of its fields and weights, which goes into the key of vLLM's compile cache.
        table: the states by slot, once the cache is there.

    Raises:
        GuardrailError: If the folder is malformed or damaged.
    """

    def __init__(self, path: str, name: str, device: torch.device) -> None:
        artefact = GuardrailFolder.open(path).artefact()
        if artefact.damage is not None:
            raise GuardrailError(f"{path}: {artefact.damage}. Download or fit it again.")
        self.name, self.config = name, artefact.config
        n, encoded, d_in = self.config.num_features, self.config.num_encoded, self.config.width
        self.encoder, self.decoder = GuardrailEncoder(d_in, encoded), GuardrailDecoder(d_in, n)
        content = [config_digest(self.config.to_dict()).encode()]
        for part, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            for key, parameter in module.named_parameters():
                parameter.data = artefact.tensors[f"{part}.{key}"].to(device)
                content.append(artefact.tensors[f"{part}.{key}"].numpy().tobytes())
        self.digest = sha256(b"".join(content))
        self.tables = ConfigTables()
        self.table: SlotTable | None = None

    def allocate(self, slots: int, longest: int, device: torch.device, most: int, vocabulary: int) -> None:
        """Make the table of states, once the number of cache slots is known.

        Args:
            slots, longest, device: As for `SlotTable`.
            most (int): Largest number of tokens of a row.
            vocabulary (int): Number of token ids.
        """
        refuses = self.config.action == "refuse"
        self.table = SlotTable(slots, state_size(self.config), longest, refuses, device)
        self.tables = ConfigTables(longest=most, vocabulary=vocabulary)

    def judge(self, hidden: Tensor, step: PackedStep) -> Judged:
        """Judge the tokens of a pass, `hidden [T, d_in]`."""
        return judge(hidden, step, self.config, self.encoder, self.decoder, self.tables, self.table)


def apply_edits(
    judged: list[tuple[Judged, Tensor | None]], stream: Tensor, hidden: Tensor, residual: Tensor | None
) -> None:
    """Add the edits of the guardrails at a layer to what the layer returned, in place.

    The residual stream is `hidden + residual`, or `hidden` alone without a `residual`. At tokens that are edited the
    whole stream goes into `residual`, and `hidden` becomes 0, so nothing is rounded twice. All other tokens keep their
    bits.

    Args:
        judged (list[tuple[Judged, Tensor | None]]): For each guardrail what it says, and `[T]` bool, the tokens of
            requests that it is on for; None: all.
        stream (Tensor): `[T, d_in]`, the residual stream.
        hidden, residual (Tensor): `[T, d_in]`, what it is the sum of.
    """
    edited, acted = stream.float(), None
    for found, allowed in judged:
        if found.edit is None or found.where is None:
            continue
        own = found.where.any(dim=1)
        if allowed is not None:
            own = own & allowed
        edited = edited + (found.edit if allowed is None else found.edit.masked_fill(~allowed[:, None], 0.0))
        acted = own if acted is None else acted | own
    if acted is None:
        return
    target = hidden if residual is None else residual
    target.copy_(torch.where(acted[:, None], edited.to(stream.dtype), target))
    if residual is not None:
        hidden.masked_fill_(acted[:, None], 0.0)
