"""Guarding features of an SAE that cannot be sliced, by a threshold for each. It is an approximation.

Of a plain TopK SAE a feature is active at token t if it is one of the k largest of all `d_sae`, which a guardrail's few
columns cannot tell:

    a_j(t) = relu(pre_j(t)) * [pre_j(t) is one of the k largest of pre(t)]           the SAE
    a_j(t) = pre_j(t) * [pre_j(t) > theta_j]                                         the guardrail

`theta_j` is set so that the feature is active as often as in the SAE. With `n_j` the number of tokens of the selection
rows at which the SAE has it active, and `p_(1) >= p_(2) >= ...` its pre-activations there in order,

    theta_j = max(0, (p_(n_j) + p_(n_j + 1)) / 2)

Of an SAE that takes each token's mean and standard deviation out of its input (`input_norm="layer"`), a guardrail takes
the mean out, and for the standard deviation the median one of these tokens; see `sae.slice.at_one_deviation`.

How far the two disagree is measured on the report rows, of which neither the features nor `theta` has seen anything
(in the faithful preset, which puts no rows aside, they are all rows).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_unlearn.errors import GuardrailError
from sae_unlearn.sae import SparseAutoencoder
from sae_unlearn.sae.equations import EPSILON
from sae_unlearn.sae.slice import not_sliceable


RULES = ("threshold",)
_ELEMENTS = 2**24  # activations held at a time


def check_topk(sae: SparseAutoencoder, rule: str | None) -> None:
    """Raise unless an SAE that cannot be sliced comes with a rule, and another one with none.

    Raises:
        GuardrailError: with the mend.
    """
    if rule is not None and rule not in RULES:
        raise GuardrailError(f"topk={rule!r} is not None or {', '.join(map(repr, RULES))}.")
    if not sae.exact_in_slices and rule is None:
        raise GuardrailError(not_sliceable(sae.k, sae.d_sae, "pass topk='threshold' to approximate it by thresholds"))
    if sae.exact_in_slices and rule is not None:
        raise GuardrailError(
            f"topk={rule!r}, but the SAE's architecture is {sae.architecture!r}, of which features are kept exactly; "
            "leave `topk` out."
        )


class TrueTopK(nn.Module):
    """The features as the whole SAE has them: `[..., d_in]` -> `a [..., N]`, in the SAE's dtype."""

    def __init__(self, sae: SparseAutoencoder, feature_ids: list[int]) -> None:
        super().__init__()
        self._sae = (sae,)  # in a tuple, so that moving this module does not move what the caller holds
        self._ids = feature_ids

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        sae = self._sae[0]
        rows = hidden.flatten(0, -2).to(sae.device)
        blocks = rows.split(max(1, _ELEMENTS // sae.d_sae))
        found = torch.cat([sae.encode(block)[:, self._ids] for block in blocks])
        return found.to(hidden.device).unflatten(0, hidden.shape[:-1])


class TopKThresholds:
    """Gathers tokens of the selection rows, and gives `theta [N]`."""

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
        """What was added."""
        none = torch.zeros(0, len(self._ids))
        return {
            "products": torch.cat([none, *self._products]),
            "std": torch.cat([none[:, 0], *self._std]),
            "active": torch.cat([none.bool(), *self._active]),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was added to others, whose order plays no part."""
        self._products, self._std, self._active = [state["products"]], [state["std"]], [state["active"]]

    @property
    def tokens(self) -> int:
        """Number of tokens added."""
        return sum(map(len, self._products))

    @property
    def std(self) -> float | None:
        """The standard deviation that every token is taken to have; None where the SAE does not normalise."""
        return float(torch.cat(self._std).median()) if self._normed else None

    def thresholds(self) -> Tensor:
        """`theta [N]` float32, by the equation above.

        Raises:
            GuardrailError: a feature was active at none of the tokens.
        """
        pre, active = torch.cat(self._products), torch.cat(self._active).sum(dim=0)
        pre = (pre if self.std is None else pre / (self.std + EPSILON)) + self._b_enc
        silent = [i for i, n in zip(self._ids, active.tolist(), strict=True) if n == 0]
        if silent:
            raise GuardrailError(
                f"Features {silent[:5]} of this SAE are active at none of {len(pre)} tokens, so no threshold can stand "
                "for them; leave them out, or raise max_held_out, which bounds the documents looked at."
            )
        ordered = pre.sort(dim=0, descending=True).values
        last = ordered.gather(0, (active - 1)[None])[0]
        following = ordered.gather(0, active.clamp(max=len(pre) - 1)[None])[0]
        middle = torch.where(active < len(pre), (last + following) / 2, torch.zeros_like(last))
        return middle.clamp(min=0)


def joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of several `TopKThresholds` as one."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


class Disagreement(NamedTuple):
    """Counts over tokens of rows that played no part in `theta`, of the SAE's features and the guardrail's.

    Attributes:
        tokens: number of tokens.
        active: at how many each feature is active in the SAE `[N]`.
        taken: at how many it is active in the guardrail `[N]`.
        differs: at how many it is active in one of the two only `[N]`.
        hot, hot_differs: at how many tokens some feature is active in the SAE; and in one of the two only.
        rows, rows_differ: number of rows; and of rows on which the gate decides otherwise than with the SAE's features.
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
        """Nothing seen yet, of N features."""
        each = {"active", "taken", "differs"}
        return cls(*(torch.zeros(n if field in each else (), dtype=torch.float64) for field in cls._fields))

    @classmethod
    def of(cls, true: Tensor, ours: Tensor, true_fires: Tensor, fires: Tensor) -> "Disagreement":
        """Of some tokens, whether features are active, `[tokens, N]` bool twice, and rows, whether they fire, `[rows]`
        bool twice; first by the SAE's features and then by the guardrail's."""
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
        """The counts of both."""
        return Disagreement(*(a + b for a, b in zip(self, other, strict=True)))

    def rates(self) -> dict[str, Any]:
        """As plain data: of all tokens the share at which a feature's state differs (mean over features, and the
        worst), of a feature's active tokens the share on which both agree, and the shares of tokens and rows.

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
    """What a user of the approximation should know, in a sentence, from `calibration["topk"]`."""
    measured = [
        f"on {found[role]['tokens']} tokens of {role} text a feature's state differs from the SAE's at "
        f"{found[role]['feature_differs']:.2%} of the tokens ({_shown(found[role]['agreement'])} of its active tokens "
        f"agree), and the gate decides otherwise on {found[role]['gate_differs']:.1%} of {found[role]['rows']} rows"
        for role in ("forget", "retain")
        if found.get(role)
    ]
    kind = "SAE" if found["k"] is None else f"topk SAE (k={found['k']})"
    std = "" if found.get("std") is None else f", with {found['std']:.3g} for the standard deviation of every token"
    return (
        f"The features of this {kind} are approximated by a threshold each{std}: "
        f"{'; '.join(measured) or 'how often that is wrong was not measured, for lack of rows'}."
    )


def _shown(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"
