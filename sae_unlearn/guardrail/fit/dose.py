"""The dose: the clamp value of each feature, and the norm of the resulting edit.

With `m_j` the mean active value of feature j on forget text and `s = clamp_scale`:

    feature     v_j = -s m_j
    absolute    v_j = -s                                    the paper's -c
    residual    v_j = -k m_j,  k such that  sqrt(E |e|^2) = s * (median norm of the residual stream)

`e = sum_j w_j (v_j - a_j) W_dec[j]` is the edit at a hot token of the forget text, with `w_j` 1 if feature j is clamped
there. Its second moment needs only N x N sums, with `G = W_dec W_dec^T`:

    E |e|^2 = v^T (G * E[w w^T]) v - 2 v^T (G * E[w (w a)^T]) 1 + 1^T (G * E[(w a)(w a)^T]) 1
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sae_unlearn.errors import GuardrailError


class EditMoments:
    """Running sums from which the mean squared norm of the edit follows for any clamp values."""

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
        """Return the sums, which can be added to those of other tokens."""
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return {"tokens": tokens, "ww": self._ww, "wa": self._wa, "aa": self._aa}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums of `state`."""
        self.tokens = int(state["tokens"])
        self._ww, self._wa, self._aa = (state[name].clone() for name in ("ww", "wa", "aa"))

    def coefficients(self, direction: Tensor) -> tuple[float, float, float]:
        """Return `(p, q, r)` with `E |e|^2 = p k^2 + q k + r` for `v = -k * direction`."""
        n = max(self.tokens, 1)
        d = direction.double().cpu()
        p = d @ (self._gram * self._ww / n) @ d
        q = 2 * (d @ (self._gram * self._wa / n)).sum()
        r = (self._gram * self._aa / n).sum()
        return float(p), float(q), float(r)

    def norm(self, clamp: Tensor) -> float:
        """Return `sqrt(E |e|^2)` for clamp values `v [N]`."""
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
    """Return the clamp values `v [N]`, float32, all <= 0.

    Raises:
        GuardrailError: If the unit needs forget text that was not passed, or no scale reaches the norm.
    """
    if unit == "absolute":
        return torch.full((n,), -float(scale))
    if mean_active is None:
        raise GuardrailError(
            f"clamp_unit={unit!r} is measured on forget text, got none. Pass `forget`, or an absolute dose such as "
            "clamp_value=-500.0."
        )
    if unit == "feature":
        return (-scale * mean_active).float()
    if moments is None or residual_norm is None:
        raise GuardrailError(f"clamp_unit={unit!r} is measured on hot tokens of forget text, got none. Pass more text.")
    p, q, r = moments.coefficients(mean_active)
    target = (scale * residual_norm) ** 2
    if p <= 0:
        raise GuardrailError(
            f"clamp_scale={scale} cannot be measured: the features are never active on the held-out forget rows. Pass "
            "more forget text, or an absolute dose: clamp_value."
        )
    if r > target:
        raise GuardrailError(
            f"clamp_scale={scale}: expected more than {max(r, 0.0) ** 0.5 / residual_norm:.3g} residual norms, the "
            "norm of the edit that sets the features to 0. Raise it."
        )
    k = (-q + (q * q - 4 * p * (r - target)) ** 0.5) / (2 * p)
    return (-k * mean_active).float()
