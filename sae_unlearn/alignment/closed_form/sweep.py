"""One sweep over layers: the least-squares change of each, which moves targets towards their goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_unlearn.alignment.closed_form.projections import Change, Projection, Taps
from sae_unlearn.alignment.closed_form.replay import Replay
from sae_unlearn.alignment.metrics import Way, way_left


SMALLEST_GAIN = 0.02  # of the median: dividing by a smaller one diverges
_LARGEST_GAMMA = 0.3  # with more, damage rises with `lam` before it falls


@dataclass(frozen=True)
class TargetRows:
    """Targets in prompts that end with their names, with base states of target and unknown entity.

    Attributes:
        input_ids (sequence of list): token rows. The last token of each is the name's last token.
        base (Tensor): `[rows, d]`, states of the targets in the base model.
        unknown (Tensor): `[rows, d]`, states of the paired unknown entity in the same prompt in the base model.
        spread (Tensor): `[d]`, unit of each dimension for `Way`.
        layer (int): 0-based decoder layer of the states.
    """

    input_ids: Sequence[list[int]]
    base: Tensor
    unknown: Tensor
    spread: Tensor
    layer: int

    def goals(self, gamma: float) -> Tensor:
        """Return goals `g = u + gamma (u - b)` `[rows, d]`, beyond the unknown entity by a share `gamma`.

        Args:
            gamma (float): Overshoot, a share of the way from target to unknown entity.
        """
        return self.unknown + gamma * (self.unknown - self.base)

    def to(self, device: torch.device) -> "TargetRows":
        """Return the rows with their states on a device.

        Args:
            device (device): The device.
        """
        moved = {name: getattr(self, name).to(device) for name in ("base", "unknown", "spread")}
        return replace(self, **moved)


def moves_of_outputs(m: Tensor, r: Tensor, site: Projection) -> Tensor:
    """Return the change `v` of the projection's outputs after which the residual stream has moved by `r`.

        without a norm     v = r / scale
        with an RMS norm   v = s ((norm(m) + r / scale) / w) - m,    s = sqrt(mean(m^2) + eps)

    with `norm(m) = w m / s`. An RMS norm forgets the length of its input, so with the norm
    `norm(m + v) = c (norm(m) + r / scale)`, exact with c = 1 if the goal is an output of the norm, that is if
    `mean(((norm(m) + r / scale) / w)^2) = 1`. Dimensions with `|w| < 0.02 median |w|` are left as they are: there the
    division would need an output of any size to move next to nothing.

    Args:
        m, r (Tensor): `[rows, d_out]`.
        site (Projection): Has `w`, `eps` and `scale`.
    """
    if site.gain is None:
        return r / site.scale
    w, size = site.gain, (m.square().mean(dim=-1, keepdim=True) + site.eps).sqrt()
    kept = w.abs() >= SMALLEST_GAIN * w.abs().median()
    divisor = torch.where(kept, w, torch.ones_like(w))
    v = size * ((w * m / size + r / site.scale) / divisor) - m
    return torch.where(kept, v, torch.zeros_like(v))


def least_squares(k: Tensor, v: Tensor, factor: Tensor, lam: float) -> Change:
    """Return the change `dW` with the smallest error on targets and the smallest effect on other text.

        minimize  mean_t |dW k_t - v_t|^2 + lam tr(dW M dW'),    M = C + ridge mean(diag C) I
        dW = mean_t(v_t k_t') A^-1,    A = mean_t(k_t k_t') + lam M

    MEMIT's update (Meng et al. 2022, arXiv 2210.07229). With the n targets as the rows of `K` and `V` it has rank n,
    and with `M = F F'` no matrix of the projection's size but `F` is needed:

        dW = V' G,    G = (lam n I + K M^-1 K')^-1 K M^-1

    Args:
        k (Tensor): `[n, d_in]`.
        v (Tensor): `[n, d_out]`.
        factor (Tensor): `F`, `[d_in, d_in]`, lower triangular.
        lam (float): Weight of what is to stay.
    """
    solved = torch.cholesky_solve(k.T, factor).T  # K M^-1
    gram = (solved @ k.T).double()
    gram = (gram + gram.T) / 2
    gram.diagonal().add_(lam * len(k))
    reads = torch.linalg.solve(gram, solved.double()).float()
    return Change(v, reads)


def cut_to_rank(changes: Sequence[Change], rank: int) -> tuple[Change, float]:
    """Return the best approximation of rank `rank` to a sum of changes, and its share of the energy.

    `sum_i V_i' G_i = Q_v R_v R_g' Q_g'`, so the SVD is that of the small matrix `R_v R_g'`.

    Returns:
        The change, with `moves = sqrt(S) U'` and `reads = sqrt(S) Z'`, and `sum of kept S^2 / sum of S^2` (1 if 0).
    """
    moves, reads = (torch.cat([getattr(one, part) for one in changes]) for part in ("moves", "reads"))
    (qv, rv), (qg, rg) = torch.linalg.qr(moves.T.double()), torch.linalg.qr(reads.T.double())
    u, s, z = torch.linalg.svd(rv @ rg.T, full_matrices=False)
    energy = float(s[:rank].square().sum() / s.square().sum()) if float(s.sum()) > 0 else 1.0
    root = s[:rank].sqrt()
    cut = Change((root * (qv @ u[:, :rank])).T.float(), (root * (qg @ z[:rank].T)).T.float())
    return cut, energy


def sweep(
    replay: Replay,
    taps: Taps,
    sites: Sequence[Projection],
    factors: Mapping[int, Tensor],
    rows: TargetRows,
    lam: float,
    gamma: float,
) -> None:
    """Change each projection in turn, with the changes before it active.

        r_t = (g_t - h_t) / (number of layers that are left)

    Args:
        replay (Replay): Of `rows`, from the first of `sites` on.
        taps (Taps): Open at `sites`; their changes are added to.
        sites (Sequence[Projection]): By layer, the last at most at `rows.layer`.
        factors (Mapping[int, Tensor]): For each layer the factor of `Moments.factor`.
        rows (TargetRows): The targets.
        lam (float): See `least_squares`.
        gamma (float): Overshoot, see `TargetRows.goals`.
    """
    goal = rows.goals(gamma)
    for number, site in enumerate(sites):
        now = replay.read(taps, site.layer, sites[max(number - 1, 0)].layer)
        r = (goal.to(now.h.device) - now.h) / (len(sites) - number)
        v = moves_of_outputs(now.m, r.to(now.m.device), site)
        taps.changes.setdefault(site.layer, []).append(least_squares(now.k, v, factors[site.layer], lam))


def solve_at(
    replay: Replay,
    taps: Taps,
    sites: Sequence[Projection],
    factors: Mapping[int, Tensor],
    rows: TargetRows,
    lam: float,
    sweeps: int,
    gamma: float | None,
) -> float:
    """Solve from the base model on at one `lam`, and return the overshoot of the last sweep.

    With `gamma=None` the overshoot is chosen from what is left, so that nothing should be left after the last sweep: if
    a sweep leaves a share s of the way to its goal and a part p is left before it, it ends at `p s - gamma (1 - s)`,
    and so

        gamma = p s / (1 - s)

    With one sweep s is measured in a trial (p = 1, `gamma = s / (1 - s)`), else in the sweep before the last.
    """
    taps.changes.clear()

    def run(overshoot: float) -> float:
        sweep(replay, taps, sites, factors, rows, lam, overshoot)
        return left(replay, taps, sites, rows).left

    before, now, overshoot = 1.0, 1.0, 0.0 if gamma is None else gamma
    for _ in range(sweeps - 1):
        before, now = now, run(0.0 if gamma is None else gamma)
    if gamma is None:
        if sweeps == 1:
            share, now = run(0.0), 1.0
            taps.changes.clear()
        else:
            share = now / before if before > 0 else 0.0
        share = min(max(share, 0.0), 0.99)
        overshoot = min(max(now, 0.0) * share / (1 - share), _LARGEST_GAMMA)
    sweep(replay, taps, sites, factors, rows, lam, overshoot)
    return overshoot


def left(replay: Replay, taps: Taps, sites: Sequence[Projection], rows: TargetRows) -> Way:
    """Return the distance left from target to unknown entity, with the changes active."""
    h = replay.read(taps, sites[-1].layer).h
    return way_left(h, *(part.to(h.device) for part in (rows.unknown, rows.base, rows.spread)))
