"""References of an alignment: states and code statistics of known and unknown entities.

They are measured once in the base model before training, and do not change.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.dataset import AlignmentItems, draw_pairs, match_unknown
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.latents import (
    LatentCodes,
    Latents,
    RawCodes,
    Separation,
    firing_frequency,
    select_latents,
    separation,
)
from sae_unlearn.alignment.loss import Standing
from sae_unlearn.alignment.prompts import prompt_rows
from sae_unlearn.alignment.split import EntityPlan
from sae_unlearn.alignment.states import Statistics, code_statistics, entity_states
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.backbone.tokens import special_token_ids
from sae_unlearn.errors import AlignmentError
from sae_unlearn.sae import SparseAutoencoder


_GENERIC_TOKENS = 4096


class AlignmentSetting:
    """The frozen side of an alignment: reference states, codes, statistics, latents and separation.

    Args:
        plan (EntityPlan): Roles of the entities.
        model (nn.Module): The bare transformers model in its base state (adapters disabled).
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        sae (SparseAutoencoder or None): None aligns the hidden states themselves.
        layer (int): 0-based decoder layer.
        args (SAEAlignmentConfig): The settings.

    Attributes:
        states (States): Base states of all reference rows, known entities first. `entity` counts within known and
            unknown.
        codes (Tensor): `[rows, n]`, their codes.
        statistics (Statistics): Per (type, template), from fit entities only.
        latents (Latents or None): None without an SAE.
        separation (Separation): On held-out entities.
        spread (Tensor): `[d_in]`, standard deviation of the states of fit entities.
    """

    def __init__(
        self,
        plan: EntityPlan,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sae: SparseAutoencoder | None,
        layer: int,
        args: SAEAlignmentConfig,
    ) -> None:
        self.plan, self.layer = plan, layer
        self.states = entity_states(model, plan.rows, layer, args.reference_batch_size)
        device = self.states.h.device
        number = torch.arange(len(plan.rows), device=device)
        self.is_known = number < len(plan.known_rows)
        fit = {True: torch.tensor(plan.fit_known), False: torch.tensor(plan.fit_unknown)}
        self.is_fit = torch.where(
            self.is_known,
            torch.isin(self.states.entity, fit[True].to(device)),
            torch.isin(self.states.entity, fit[False].to(device)),
        )
        self.latents: Latents | None = None
        fit_h = {side: self.states.h[self.is_fit & (self.is_known == side)] for side in (True, False)}
        if sae is None:
            self.code: LatentCodes | RawCodes = RawCodes(fit_h[True], fit_h[False], args.num_known_latents)
        else:
            generic = _generic_frequency(model, tokenizer, sae, layer, plan.text_rows, args.reference_batch_size)
            known, unknown = (self._frequencies(sae, side) for side in (True, False))
            numbers = args.num_known_latents, args.num_unknown_latents
            self.latents = select_latents(known, unknown, generic, *numbers, args.max_generic_frequency)
            self.code = LatentCodes(sae, self.latents)
        self.code.to(device)
        self.codes = self.code(self.states.h)
        known, unknown = self.is_fit & self.is_known, self.is_fit & ~self.is_known
        group = self.states.group
        self.statistics: Statistics = code_statistics(
            self.codes[unknown], group[unknown], self.codes[known], group[known], plan.groups.types_of_groups()
        )
        self.spread = torch.cat(list(fit_h.values())).std(dim=0).clamp(min=1e-6)
        rows = {held_out: self.reference_rows(False, held_out) for held_out in (False, True)}
        self._bank = {held_out: (self.codes[of], group[of]) for held_out, of in rows.items()}
        self.separation: Separation = self._separation()

    def items(
        self, targets: EntitySet, tokenizer: PreTrainedTokenizerBase, args: SAEAlignmentConfig, held_out: bool
    ) -> AlignmentItems:
        """Return the training items or, with `held_out`, the evaluation items of targets.

        Evaluation items have other templates, references and retain rows.

        Raises:
            AlignmentError: If a type has no references in this setting, or a name cannot be located.
        """
        plan = self.plan
        if other := [kind for kind in targets.types if kind not in plan.groups]:
            raise AlignmentError(
                f"entity_type={other[0]!r}: expected a type with references, "
                f"{', '.join(map(repr, plan.groups.types))}. "
                "Evaluate it in an alignment of its own."
            )
        groups = {g for kind in plan.groups.types for g in plan.groups.of_type(kind, held_out)}
        wanted = [
            i
            for i, (row, fit) in enumerate(zip(plan.rows, self.is_fit.tolist(), strict=True))
            if fit != held_out and row.group in groups
        ]
        pool = sorted({plan.rows[i].entity for i in wanted if i >= len(plan.known_rows)})
        unknown = EntitySet([plan.unknown[i] for i in pool])
        matched = match_unknown(targets, unknown, per_target=args.matched_unknown, seed=args.seed)
        return AlignmentItems(
            prompt_rows(targets, tokenizer, plan.groups, held_out, args.chat_template),
            [plan.rows[i] for i in wanted],
            wanted,
            [i < len(plan.known_rows) for i in wanted],
            [[pool[j] for j in few] for few in draw_pairs(matched, args.pairs_per_target, args.seed)],
            plan.eval_retain if held_out else plan.retain,
            1 if held_out else args.draws_per_prompt,
            args.retain_positions,
            args.seed,
        )

    def standing(self, z: Tensor, group: Tensor, pair: Tensor, contrast: Tensor, held_out: bool = False) -> Standing:
        """Return the input of the loss for a batch of targets.

        Args:
            z (Tensor): `[rows, n]`, codes of the targets.
            group, pair, contrast (Tensor): `[rows]`, as in `AlignmentItems`.
            held_out (bool, *optional*, defaults to False): Use held-out unknown entities in parts that read all of
                them.
        """
        stats = self.statistics
        bank, bank_group = self._bank[held_out]
        return Standing(
            z=z,
            pair=self.codes[pair],
            contrast=self.codes[contrast],
            unknown_mean=stats.unknown_mean[group],
            known_mean=stats.known_mean[group],
            limit=stats.limit[group],
            scale=stats.scale[group],
            group=group,
            bank=bank,
            bank_group=bank_group,
            known=self.code.known,
        )

    def standardized(self, codes: Tensor, group: Tensor) -> Tensor:
        """Return `(codes - mean of the unknown) / scale`, in the row's own template: `[rows, n]`."""
        return (codes - self.statistics.unknown_mean[group]) / self.statistics.scale[group]

    def to(self, device: torch.device | str) -> "AlignmentSetting":
        """Move every tensor to a device and return the setting."""
        self.states, self.code = self.states.to(device), self.code.to(device)
        self.statistics = Statistics(*(part.to(device) for part in self.statistics))
        self._bank = {key: (a.to(device), b.to(device)) for key, (a, b) in self._bank.items()}
        for name in ("codes", "spread", "is_known", "is_fit"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def reference_rows(self, known: bool, held_out: bool) -> Tensor:
        """Return the numbers of the reference rows of known or unknown entities, held-out ones or the others."""
        return ((self.is_fit != held_out) & (self.is_known == known)).nonzero().flatten()

    def _frequencies(self, sae: SparseAutoencoder, known: bool) -> Tensor:
        kinds = torch.tensor(self.plan.groups.types_of_groups(), device=self.states.group.device)[self.states.group]
        side = self.is_fit & (self.is_known == known)
        return torch.stack(
            [firing_frequency(sae, self.states.h[side & (kinds == k)]) for k in range(len(self.plan.groups.types))]
        )

    def _separation(self) -> Separation:
        def side(known: bool) -> tuple[Tensor, Tensor]:
            rows = self.reference_rows(known, held_out=True)
            return self.standardized(self.codes[rows], self.states.group[rows]), self.states.entity[rows]

        return separation(*side(True), *side(False), self.code.known, self.code.unknown)


def _generic_frequency(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sae: SparseAutoencoder,
    layer: int,
    rows: Sequence[list[int]],
    batch_size: int,
) -> Tensor | None:
    """Firing rate of each latent on ordinary tokens, without special ones, or None without text."""
    few: list[list[int]] = []
    for row in rows:
        if sum(map(len, few)) >= _GENERIC_TOKENS:
            break
        few.append(row)
    if not few:
        return None
    special = torch.tensor(special_token_ids(tokenizer, model.config), dtype=torch.long)
    tokens = []
    for batch in residual_batches(model, few, layer, batch_size):
        tokens.append(batch.residual[batch.kept & ~torch.isin(batch.input_ids, special.to(batch.input_ids.device))])
    return firing_frequency(sae, torch.cat(tokens))
