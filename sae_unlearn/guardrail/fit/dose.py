"""The dose: what value each feature is clamped to, and how large the edit then is.

With `m_j` the mean active value of feature j on forget text and `s = clamp_scale`:

    feature     v_j = -s m_j
    absolute    v_j = -s                                    the paper's -c
    residual    v_j = -k m_j,  k such that  sqrt(E |e|^2) = s * (median norm of the residual stream)

where `e = sum_j where_j (v_j - a_j) W_dec[j]` is the edit at a hot token of the forget text. Its second moment needs
only N x N sums, with `G = W_dec W_dec^T`, `w = where`:

    E |e|^2 = v^T (G * E[w w^T]) v - 2 v^T (G * E[w (w a)^T]) 1 + 1^T (G * E[(w a)(w a)^T]) 1
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError


class EditMoments:
    """Running sums that give the mean squared norm of the edit for any clamp values."""

    def __init__(self, W_dec: Tensor, clamp_mode: str) -> None:
        self._gram = (W_dec.double() @ W_dec.double().T).cpu()
        self._clamp_mode = clamp_mode
        n = W_dec.shape[0]
        self.tokens = 0
        self._ww = torch.zeros(n, n, dtype=torch.float64)
        self._wa = torch.zeros(n, n, dtype=torch.float64)
        self._aa = torch.zeros(n, n, dtype=torch.float64)

    def add(self, activations: Tensor) -> None:
        """Add hot tokens, `[tokens, N]`."""
        a = activations.detach().double().cpu()
        w = (a > 0).double() if self._clamp_mode == "fired" else torch.ones_like(a)
        self.tokens += a.shape[0]
        self._ww += w.T @ w
        self._wa += w.T @ (w * a)
        self._aa += (w * a).T @ (w * a)

    def state(self) -> dict[str, Tensor]:
        """The sums, which may be added to those of other tokens."""
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return {"tokens": tokens, "ww": self._ww, "wa": self._wa, "aa": self._aa}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over sums of `state`."""
        self.tokens = int(state["tokens"])
        self._ww, self._wa, self._aa = (state[name].clone() for name in ("ww", "wa", "aa"))

    def coefficients(self, direction: Tensor) -> tuple[float, float, float]:
        """`(p, q, r)` with `E |e|^2 = p k^2 + q k + r` for `v = -k * direction`."""
        n = max(self.tokens, 1)
        d = direction.double().cpu()
        p = d @ (self._gram * self._ww / n) @ d
        q = 2 * (d @ (self._gram * self._wa / n)).sum()
        r = (self._gram * self._aa / n).sum()
        return float(p), float(q), float(r)

    def norm(self, clamp: Tensor) -> float:
        """`sqrt(E |e|^2)` for clamp values `v [N]`."""
        p, q, r = self.coefficients(-clamp)
        return max(p + q + r, 0.0) ** 0.5


def clamp_values(
    unit: str,
    scale: float,
    mean_active: Tensor | None,
    moments: EditMoments | None,
    residual_norm: float | None,
    n: int,
) -> Tensor:
    """The clamp values `v [N]`, float32, all <= 0.

    Raises:
        GuardrailError: the unit needs forget text and there is none, or no scale reaches the wanted norm.
    """
    if unit == "absolute":
        return torch.full((n,), -float(scale))
    if mean_active is None:
        raise GuardrailError(
            f"clamp_unit={unit!r} is measured on forget text, and none was given; pass `forget`, or an absolute dose "
            "such as clamp_value=-500.0."
        )
    if unit == "feature":
        return (-scale * mean_active).float()
    if moments is None or residual_norm is None:
        raise GuardrailError(f"clamp_unit={unit!r} is measured on forget text, and no token of it was hot.")
    p, q, r = moments.coefficients(mean_active)
    target = (scale * residual_norm) ** 2
    if p <= 0:
        raise GuardrailError(
            "The chosen features are active on no token of the forget rows put aside, so an edit of "
            f"{scale} residual norms cannot be measured; give more forget text, or an absolute dose: clamp_value."
        )
    if r > target:
        raise GuardrailError(
            f"clamp_scale={scale} residual norms is less than what setting the features to 0 takes away already "
            f"({max(r, 0.0) ** 0.5 / residual_norm:.3g}); raise it."
        )
    k = (-q + (q * q - 4 * p * (r - target)) ** 0.5) / (2 * p)
    return (-k * mean_active).float()
