"""Approximation of the features of an SAE that cannot be sliced, by a threshold for each.

In a plain TopK SAE a feature is active at token t if it is one of the k largest of all `d_sae`, which a guardrail's few
columns do not show:

    a_j(t) = relu(pre_j(t)) * [pre_j(t) is one of the k largest of pre(t)]           the SAE
    a_j(t) = pre_j(t) * [pre_j(t) > theta_j]                                         the guardrail

`theta_j` is set so that the feature is active as often as in the SAE. With `n_j` the number of tokens of the selection
rows at which it is active in the SAE, and `p_(1) >= p_(2) >= ...` its sorted pre-activations,

    theta_j = max(0, (p_(n_j) + p_(n_j + 1)) / 2)

For an SAE that removes each token's mean and standard deviation from its input (`input_norm="layer"`), a guardrail
removes the mean, and divides by the median standard deviation of these tokens; see `sae.slice.at_one_deviation`.

Their disagreement is measured on the report rows, which were used neither for the features nor for `theta` (in the
faithful preset, which holds no rows out, on all rows).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailError
from sae_unlearn.options.fit import GuardrailFitConfig
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.equations import EPSILON
from sae_unlearn.sae.slice import not_sliceable


RULES = ("threshold",)
_ELEMENTS = 2**24  # activations in memory at a time


def check_topk(sae: SparseAutoencoder, rule: str | None) -> None:
    """Raise unless `rule` is set exactly for an SAE that cannot be sliced.

    Raises:
        GuardrailError: If a rule is missing, unknown or not needed.
    """
    if rule is not None and rule not in RULES:
        raise GuardrailError(f"topk={rule!r}: expected None or {', '.join(map(repr, RULES))}.")
    if not sae.exact_in_slices and rule is None:
        raise GuardrailError(not_sliceable(sae.k, sae.d_sae, "pass topk='threshold' to approximate it by thresholds"))
    if sae.exact_in_slices and rule is not None:
        raise GuardrailError(
            f"topk={rule!r}: expected None with architecture={sae.architecture!r}, whose features are sliced exactly."
        )


def with_rule_for(given: GuardrailFitConfig, sae: SparseAutoencoder) -> GuardrailFitConfig:
    """Return the options for an SAE that "auto" chose; one that cannot be sliced is approximated."""
    if given.topk is not None or sae.exact_in_slices:
        return given
    warnings.warn(
        "sae='auto': only SAEs with top-k or normalized inputs are published for this model, so topk='threshold' "
        "approximates their features.",
        stacklevel=3,
    )
    return replace(given, topk="threshold")


class TrueTopK(nn.Module):
    """The features as the whole SAE computes them: `[..., d_in]` -> `a [..., N]`, in the SAE's dtype."""

    def __init__(self, sae: SparseAutoencoder, feature_ids: list[int]) -> None:
        super().__init__()
        self._sae = (sae,)  # in a tuple, so that moving this module does not move the caller's SAE
        self._ids = feature_ids

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        sae = self._sae[0]
        rows = hidden.flatten(0, -2).to(sae.device)
        blocks = rows.split(max(1, _ELEMENTS // sae.d_sae))
        found = torch.cat([sae.encode(block)[:, self._ids] for block in blocks])
        return found.to(hidden.device).unflatten(0, hidden.shape[:-1])


class TopKThresholds:
    """Collector of tokens of the selection rows, from which `theta [N]` follows."""

    def __init__(self, sae: SparseAutoencoder, feature_ids: list[int]) -> None:
        self.true = TrueTopK(sae, feature_ids)
        self._ids = feature_ids
        self._normed = sae.input_norm == "layer"
        W_enc = sae.W_enc[:, feature_ids].float().cpu()
        self._W_enc = W_enc - W_enc.mean(dim=0) if self._normed else W_enc
        self._b_enc = sae.b_enc[feature_ids].float().cpu()
        self._products: list[Tensor] = []
        self._std: list[Tensor] = []
        self._active: list[Tensor] = []

    def add(self, residual: Tensor) -> None:
        """Add tokens, `[tokens, d_in]`."""
        residual = residual.float()
        self._products.append(residual.cpu() @ self._W_enc)
        self._std.append(residual.std(dim=-1).cpu())
        self._active.append((self.true(residual) > 0).cpu())

    def state(self) -> dict[str, Tensor]:
        """Return the added tokens' products, standard deviations and activity."""
        none = torch.zeros(0, len(self._ids))
        return {
            "products": torch.cat([none, *self._products]),
            "std": torch.cat([none[:, 0], *self._std]),
            "active": torch.cat([none.bool(), *self._active]),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tokens of `state`. Their order does not matter."""
        self._products, self._std, self._active = [state["products"]], [state["std"]], [state["active"]]

    @property
    def tokens(self) -> int:
        """Number of tokens added."""
        return sum(map(len, self._products))

    @property
    def std(self) -> float | None:
        """Standard deviation assumed for every token; None if the SAE does not normalize."""
        return float(torch.cat(self._std).median()) if self._normed else None

    def thresholds(self) -> Tensor:
        """Return `theta [N]` float32, by the equation above.

        Raises:
            GuardrailError: If a feature was active at none of the tokens.
        """
        pre, active = torch.cat(self._products), torch.cat(self._active).sum(dim=0)
        pre = (pre if self.std is None else pre / (self.std + EPSILON)) + self._b_enc
        silent = [i for i, n in zip(self._ids, active.tolist(), strict=True) if n == 0]
        if silent:
            raise GuardrailError(
                f"Features {silent[:5]} are never active at {len(pre)} tokens, so they have no threshold. Leave them "
                "out, or raise max_held_out, which bounds the documents that are read."
            )
        ordered = pre.sort(dim=0, descending=True).values
        last = ordered.gather(0, (active - 1)[None])[0]
        following = ordered.gather(0, active.clamp(max=len(pre) - 1)[None])[0]
        middle = torch.where(active < len(pre), (last + following) / 2, torch.zeros_like(last))
        return middle.clamp(min=0)


def joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the states of several `TopKThresholds` as one."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


class Disagreement(NamedTuple):
    """Counts on held-out rows of how the guardrail's features differ from the SAE's.

    Attributes:
        tokens (Tensor): Number of tokens.
        active (Tensor): Number of tokens at which each feature is active in the SAE `[N]`.
        taken (Tensor): Number of tokens at which it is active in the guardrail `[N]`.
        differs (Tensor): Number of tokens at which it is active in only one of the two `[N]`.
        hot (Tensor): Number of tokens at which some feature is active in the SAE.
        hot_differs (Tensor): Number of tokens at which some feature is active in only one of the two.
        rows (Tensor): Number of rows.
        rows_differ (Tensor): Number of rows on which the gate decides differently than with the SAE's features.
    """

    tokens: Tensor
    active: Tensor
    taken: Tensor
    differs: Tensor
    hot: Tensor
    hot_differs: Tensor
    rows: Tensor
    rows_differ: Tensor

    @classmethod
    def none(cls, n: int) -> "Disagreement":
        """Return empty counts of N features."""
        each = {"active", "taken", "differs"}
        return cls(*(torch.zeros(n if field in each else (), dtype=torch.float64) for field in cls._fields))

    @classmethod
    def of(cls, true: Tensor, ours: Tensor, true_fires: Tensor, fires: Tensor) -> "Disagreement":
        """Return the counts of some tokens and rows.

        Args:
            true (Tensor): Activity by the SAE, `[tokens, N]` bool.
            ours (Tensor): Activity by the guardrail, `[tokens, N]` bool.
            true_fires (Tensor): Fired rows with the SAE's features, `[rows]` bool.
            fires (Tensor): Fired rows with the guardrail's features, `[rows]` bool.
        """
        hot = true.any(dim=-1)
        counts = (
            torch.tensor(len(true)),
            true.sum(dim=0),
            ours.sum(dim=0),
            (true != ours).sum(dim=0),
            hot.sum(),
            (hot != ours.any(dim=-1)).sum(),
            torch.tensor(len(fires)),
            (true_fires != fires).sum(),
        )
        return cls(*(count.double().cpu() for count in counts))

    def plus(self, other: "Disagreement") -> "Disagreement":
        """Return the sum of both counts."""
        return Disagreement(*(a + b for a, b in zip(self, other, strict=True)))

    def rates(self) -> dict[str, Any]:
        """Return rates as plain data.

        They are the share of tokens at which a feature's state differs (mean over features, and the worst), the share
        of active tokens on which both agree, and the shares of hot tokens and of rows that differ.

            agreement = (active and taken) / (active or taken)            over all features and tokens
        """
        tokens, rows = max(float(self.tokens), 1.0), max(float(self.rows), 1.0)
        either = float((self.active + self.taken + self.differs).sum()) / 2
        both = float((self.active + self.taken - self.differs).sum()) / 2
        return {
            "tokens": int(self.tokens),
            "feature_differs": round(float(self.differs.mean()) / tokens, 6),
            "worst_feature_differs": round(float(self.differs.amax()) / tokens, 6),
            "agreement": round(both / either, 4) if either else None,
            "hot": round(float(self.hot) / tokens, 6),
            "hot_differs": round(float(self.hot_differs) / tokens, 6),
            "rows": int(self.rows),
            "gate_differs": round(float(self.rows_differ) / rows, 4),
        }


def approximation_warning(found: dict[str, Any]) -> str:
    """Return the warning on the approximation, in a sentence, from `calibration["topk"]`."""
    measured = [
        f"on {found[role]['tokens']} tokens of {role} text a feature's state differs from the SAE's at "
        f"{found[role]['feature_differs']:.2%} of the tokens ({_shown(found[role]['agreement'])} of its active tokens "
        f"agree), and the gate decides differently on {found[role]['gate_differs']:.1%} of {found[role]['rows']} rows"
        for role in ("forget", "retain")
        if found.get(role)
    ]
    kind = "SAE" if found["k"] is None else f"topk SAE (k={found['k']})"
    std = "" if found.get("std") is None else f", with standard deviation {found['std']:.3g} for every token"
    return (
        f"The features of this {kind} are approximated by a threshold each{std}: "
        f"{'; '.join(measured) or 'the error was not measured, since no rows were held out'}."
    )


def _shown(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"
