"""Unlearning baselines that the alignment is compared with: one file each, one training loop for all."""

from benchmarks.baselines import grad_diff, gradient_ascent, npo, refusal, rmu  # noqa: F401  (they register themselves)
from benchmarks.baselines.damage_budget import BudgetCallback, DamageBudget
from benchmarks.baselines.method import Method, get_method, method_names
from benchmarks.baselines.rows import Batch, encode
from benchmarks.baselines.training import train_baseline


__all__ = [
    "Batch",
    "BudgetCallback",
    "DamageBudget",
    "Method",
    "encode",
    "get_method",
    "method_names",
    "train_baseline",
]
