"""`solve_alignment`: the closed form, at the weight that uses a damage budget, as a LoRA."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sae_unlearn.alignment.closed_form.covariance import Moments
from sae_unlearn.alignment.closed_form.projections import Change, Projection, tapped
from sae_unlearn.alignment.closed_form.replay import Replay
from sae_unlearn.alignment.closed_form.sweep import TargetRows, cut_to_rank, left, solve_at
from sae_unlearn.alignment.metrics import Way
from sae_unlearn.errors import AlignmentError


logger = logging.getLogger(__name__)

BUDGET = 0.04
GAMMA = 0.15
RANK = 16
_START, _LEAST, _MOST = 20.0, 0.05, 1e5
_SPENT = 0.7  # of the budget: near enough
_TRIES = 8
_NEARER = 0.98  # of the error before, or a smaller `lam` is not worth its damage


@dataclass(frozen=True)
class Solution:
    """The outcome of `solve_alignment`.

    Attributes:
        changes (mapping from int to Change): for each layer the change of its projection, of the rank asked for.
        lam (float): weight of what is to stay.
        gamma (float): overshoot of the last sweep.
        damage (float): of the changes on the validation rows, in nats per token.
        way (Way): what is left of the way from targets to unknown entities, in the prompts of the solve.
        energy (float): share of the changes' squared norm that is within the rank, the smallest of all layers.
        tried (sequence of tuple): `(lam, damage)` of every try.
    """

    changes: Mapping[int, Change]
    lam: float
    gamma: float
    damage: float
    way: Way
    energy: float
    tried: Sequence[tuple[float, float]]

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by the names under which a trainer logs them."""
        return {
            "solve_lam": self.lam,
            "solve_gamma": self.gamma,
            "solve_damage": self.damage,
            "solve_way_left": self.way.left,
            "solve_way_error": self.way.error,
            "solve_rank_energy": self.energy,
        }


def solve_alignment(
    model: nn.Module,
    rows: TargetRows,
    sites: Sequence[Projection],
    moments: Moments,
    damage: Callable[[], float],
    *,
    budget: float = BUDGET,
    lam: float | None = None,
    gamma: float | None = GAMMA,
    sweeps: int = 2,
    rank: int | Mapping[int, int] = RANK,
    batch_size: int = 32,
) -> Solution:
    """Solve for the change of MLP output projections that moves targets to unknown entities.

    For every layer in turn, in one or more sweeps, with the weights as they are by then:

        g_t  = u_t + gamma (u_t - b_t)                     the goal
        r_t  = (g_t - h_t) / (number of layers left)       an equal share of what is left
        v_t  = moves_of_outputs(m_t, r_t)                  through the norm after the MLP, if any
        dW   = mean_t(v_t k_t') A^-1,   A = mean_t(k_t k_t') + lam (C + ridge mean(diag C) I)

    `k_t` and `m_t` are the projection's input and output at the last token of target t's name, `h_t` the state after
    the last layer there, `b_t` and `u_t` that of the target and of its unknown entity in the base model, and `C` the
    second moments of the projection's inputs over what is to stay. Each `dW` is cut to its rank by SVD. MEMIT's update
    (Meng et al. 2022, arXiv 2210.07229) with the state of an unknown entity as its goal: no answer enters.

    The damage falls with `lam`. The smallest `lam` whose damage is within the budget is searched for by interpolation
    of `log damage` over `log lam`, and by bisection where that leaves the bracket. The search ends before if a smaller
    `lam` brings the targets no nearer.

    Args:
        model (nn.Module): The bare transformers model; its weights are not changed.
        rows (TargetRows): The targets in their prompts.
        sites (Sequence[Projection]): See `find_projections`.
        moments (Moments): See `stream_moments`.
        damage (Callable): Returns the damage of the model as it is then, such as a `Damage`.
        budget (float, *optional*, defaults to 0.04): Largest damage, in nats per token.
        lam (float, *optional*): Weight of what is to stay. `None` searches for it; a number is used whatever its
            damage.
        gamma (float, *optional*, defaults to 0.15): Overshoot in every sweep. `None` chooses that of the last sweep
            from what is left (see `solve_at`), at most 0.3.
        sweeps (int, *optional*, defaults to 2): Sweeps over the layers.
        rank (int or mapping, *optional*, defaults to 16): Rank of each change, or the rank by layer.
        batch_size (int, *optional*, defaults to 32): Rows per forward pass.

    Returns:
        Solution: The changes, and what they do.

    Raises:
        AlignmentError: If no `lam` is within the budget.
    """
    factors = {site.layer: moments.factor(site.layer) for site in sites}
    ranks = rank if isinstance(rank, Mapping) else {site.layer: rank for site in sites}
    with tapped(sites) as taps:
        replay = Replay(model, rows.input_ids, sites[0].layer, rows.layer, batch_size)

        def attempt(weight: float) -> Solution:
            overshoot = solve_at(replay, taps, sites, factors, rows, weight, sweeps, gamma)
            energy = 1.0
            for site in sites:
                change, kept = cut_to_rank(taps.changes[site.layer], ranks[site.layer])
                taps.changes[site.layer], energy = [change], min(energy, kept)
            spent, way = damage(), left(replay, taps, sites, rows)
            if not math.isfinite(spent):
                spent = math.inf
            logger.info("lam %.4g: damage %.4g, %.3f of the way left", weight, spent, way.left)
            changes = {site.layer: taps.changes[site.layer][0] for site in sites}
            return Solution(changes, weight, overshoot, spent, way, energy, [(weight, spent)])

        return attempt(lam) if lam is not None else _within(budget, attempt)


def _within(budget: float, attempt: Callable[[float], Solution]) -> Solution:
    """The solution with the smallest `lam` that is found within the budget.

    Raises:
        AlignmentError: none is.
    """
    tried: list[tuple[float, float]] = []
    best: Solution | None = None
    low, high = (0.0, math.inf), (math.inf, 0.0)  # (lam, damage): too much damage below, within the budget above
    lam = _START
    for _ in range(_TRIES):
        found = attempt(lam)
        tried.append((lam, found.damage))
        if found.damage <= budget:
            if best is not None and lam < best.lam and found.way.error > _NEARER * best.way.error:
                break  # more damage, and no nearer
            high, best = (lam, found.damage), found
            if found.damage >= _SPENT * budget or lam <= _LEAST:
                break
        else:
            low = (lam, found.damage)
            if lam >= _MOST:
                break
        lam = _next(low, high, budget)
    if best is None:
        shown = ", ".join(f"{spent:.3g} at lam {at:.3g}" for at, spent in tried[-3:])
        raise AlignmentError(
            f"retain_budget={budget:g}: expected a damage within it, got {shown}. Set a larger budget, fewer targets, "
            'fewer solve_layers, or init="zero".'
        )
    return Solution(**{**vars(best), "tried": tried})


def _next(low: tuple[float, float], high: tuple[float, float], budget: float) -> float:
    """Return the next `lam`: `log damage`, linear in `log lam`, is a little below the budget there."""
    (a, damage_a), (b, damage_b) = low, high
    if a == 0.0:  # no `lam` was too small yet; damage falls more slowly than 1 / lam
        return max(b * min(max((damage_b / budget) ** 2, 0.1), 0.5), _LEAST)
    if math.isinf(b):
        return min(a * min(max(1.1 * damage_a / budget, 1.5), 10.0), _MOST)
    if math.isfinite(damage_a) and damage_b > 0:
        share = (math.log(damage_a) - math.log(0.97 * budget)) / (math.log(damage_a) - math.log(damage_b))
        return math.exp(math.log(a) + min(max(share, 0.05), 0.95) * (math.log(b) - math.log(a)))
    return math.sqrt(a * b)


def write_lora(solution: Solution, sites: Sequence[Projection], adapter: str) -> None:
    """Write the changes into a LoRA that lies on the projections, `scaling * B A = dW`.

    Args:
        solution (Solution): From `solve_alignment`.
        sites (sequence of Projection): The projections of its layers.
        adapter (str): Name of the LoRA.

    Raises:
        AlignmentError: If a projection has no such LoRA, or it is not a plain one that starts at zero.
    """
    for site in sites:
        module = lora_on(site, adapter)
        change, scaling = solution.changes[site.layer], module.scaling[adapter]
        for weight, value in (
            (module.lora_A[adapter].weight, change.reads),
            (module.lora_B[adapter].weight, change.moves.T / scaling),
        ):
            _fill(weight, value)


def lora_on(site: Projection, adapter: str) -> Any:
    """The LoRA layer on a projection.

    Raises:
        AlignmentError: If there is none, or it is not a plain LoRA that starts at zero.
    """
    module = site.module
    if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
        raise AlignmentError(
            f'init="closed_form": expected a LoRA on {site.name}, got none. Add {site.name.rpartition(".")[2]} to '
            'target_modules, leave peft_config out, or set init="zero".'
        )
    if module.use_dora.get(adapter, False):
        raise AlignmentError(
            'init="closed_form": expected use_dora=False, got a DoRA. Set it to False, or init="zero".'
        )
    if bool(module.lora_B[adapter].weight.ne(0).any()):
        raise AlignmentError(
            f'init="closed_form": expected a LoRA that starts at zero, got a trained one on {site.name}. '
            'Pass the bare model, or set init="zero".'
        )
    return module


@torch.no_grad()
def _fill(weight: Tensor, value: Tensor) -> None:
    """Copy `value` into the leading part of `weight`, and set the rest to zero."""
    weight.zero_()
    weight[: value.shape[0], : value.shape[1]].copy_(value)
