"""The closed form for what a trainer was given: its LoRA, and the solve at the start of `train`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftConfig
from torch import nn

from sae_unlearn.alignment.closed_form.covariance import stream_moments
from sae_unlearn.alignment.closed_form.damage import Damage
from sae_unlearn.alignment.closed_form.projections import find_projections
from sae_unlearn.alignment.closed_form.solve import BUDGET, RANK, Solution, lora_on, solve_alignment, write_lora
from sae_unlearn.alignment.closed_form.stay import damage_rows, stay_rows
from sae_unlearn.alignment.closed_form.sweep import TargetRows
from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.errors import AlignmentError


if TYPE_CHECKING:
    from sae_unlearn.alignment.reference import AlignmentSetting


logger = logging.getLogger(__name__)

_LAYERS = 5
_MUCH_LEFT = 0.5
_LITTLE_HELD = 0.9


def solved_layers(args: SAEAlignmentConfig, layer: int) -> list[int]:
    """Return the layers to change: those of the settings, or the aligned one and up to four below.

    Raises:
        AlignmentError: If one lies above the aligned layer.
    """
    layers = sorted(args.solve_layers or range(max(0, layer - _LAYERS + 1), layer + 1))
    if layers[-1] > layer:
        raise AlignmentError(
            f"solve_layers={args.solve_layers!r}: expected layers up to the aligned one, {layer}. Leave the others out."
        )
    return layers


def closed_form_lora(model: nn.Module, args: SAEAlignmentConfig, layer: int, row: Sequence[int]) -> PeftConfig:
    """The LoRA of the closed form: rank 16, on the output projections of the MLPs of its layers alone.

    Raises:
        AlignmentError: If the model has no such projections, see `find_projections`.
    """
    layers = solved_layers(args, layer)
    names = {site.name.rpartition(".")[2] for site in find_projections(model, layers, row)}
    of_attention = names & {"c_proj", "Wo"}  # which attention has as well
    targets: Any = rf".*\.({'|'.join(map(str, layers))})\.mlp\.({'|'.join(names)})" if of_attention else sorted(names)
    chosen = None if of_attention else layers
    return LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=targets, layers_to_transform=chosen, task_type="CAUSAL_LM"
    )


def solve_for(
    bare: nn.Module,
    adapter: str,
    setting: "AlignmentSetting",
    target_rows: Any,
    tokenizer: Any,
    args: SAEAlignmentConfig,
) -> Solution:
    """Solve for the targets of a trainer and write the solution into its LoRA.

    Args:
        bare (nn.Module): The transformers model with the LoRA on it.
        adapter (str): Name of the LoRA.
        setting (AlignmentSetting): The frozen references.
        target_rows (TargetRows): The targets in the prompts of the training.
        tokenizer (PreTrainedTokenizerBase): The tokenizer.
        args (SAEAlignmentConfig): The settings.

    Raises:
        AlignmentError: If the LoRA or the model does not suit, or no solution is within the budget.
    """
    rows: TargetRows = target_rows
    sites = find_projections(bare, solved_layers(args, setting.layer), rows.input_ids[0])
    loras = {site.layer: lora_on(site, adapter) for site in sites}
    batch_size = args.reference_batch_size
    staying = stay_rows(setting.plan, tokenizer, args.seed, args.chat_template)
    cache = None if args.covariance_cache is None else Path(args.covariance_cache)
    moments = stream_moments(bare, staying, sites, batch_size, cache)
    judged = damage_rows(setting.plan, args.retain_positions, args.seed)
    if not judged and args.solve_lam is None:
        raise AlignmentError(
            'init="closed_form": expected held-out retain rows to measure the damage on, got none. Give retain text, '
            'known entities with attributes, or solve_lam, or set init="zero".'
        )
    solution = solve_alignment(
        bare,
        rows,
        sites,
        moments,
        Damage(bare, judged, batch_size),
        budget=BUDGET if args.retain_budget is None else args.retain_budget,
        lam=args.solve_lam,
        gamma=args.solve_gamma,
        sweeps=args.solve_sweeps,
        rank={layer: int(lora.r[adapter]) for layer, lora in loras.items()},
        batch_size=batch_size,
    )
    write_lora(solution, sites, adapter)
    if solution.energy < _LITTLE_HELD:
        logger.warning(
            "The LoRA's rank of %d holds %.2f of the solution for %d targets, and %.2f of the way is left. Fewer "
            "targets at once forget more; a larger rank (r in peft_config, --lora-rank) goes further and damages more.",
            min(int(lora.r[adapter]) for lora in loras.values()),
            solution.energy,
            len(setting.plan.targets),
            solution.way.left,
        )
    elif solution.way.left > _MUCH_LEFT:
        logger.warning(
            "Within the budget %.2f of the way is left, so most of what was known is. Set a larger retain_budget.",
            solution.way.left,
        )
    return solution
