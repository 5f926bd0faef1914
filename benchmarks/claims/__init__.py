"""The claims of the abstract of arXiv 2504.08192, one file each."""

from benchmarks.claims import (
    cost,
    data_efficiency,
    interpretability,
    relearning,
    sequential,
    stability,
    trade_off,
    zero_shot,
)
from benchmarks.claims.claim import Claim, Verdict, Work


CLAIMS: dict[str, Claim] = {
    "trade_off": trade_off.CLAIM,
    "cost": cost.CLAIM,
    "stability": stability.CLAIM,
    "sequential": sequential.CLAIM,
    "relearning": relearning.CLAIM,
    "data_efficiency": data_efficiency.CLAIM,
    "zero_shot": zero_shot.CLAIM,
    "interpretability": interpretability.CLAIM,
}

__all__ = ["CLAIMS", "Claim", "Verdict", "Work"]
