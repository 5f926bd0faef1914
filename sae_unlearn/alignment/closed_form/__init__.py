"""Closed-form alignment: a least-squares change of MLP output projections, without training.

It moves targets to unknown entities.

The parts of `solve_alignment`, for use without a trainer.
"""

from sae_unlearn.alignment.closed_form.covariance import Moments, StayRow, stream_moments
from sae_unlearn.alignment.closed_form.damage import Damage
from sae_unlearn.alignment.closed_form.projections import Projection, find_projections
from sae_unlearn.alignment.closed_form.solve import Solution, solve_alignment, write_lora
from sae_unlearn.alignment.closed_form.sweep import TargetRows


__all__ = [
    "Damage",
    "Moments",
    "Projection",
    "Solution",
    "StayRow",
    "TargetRows",
    "find_projections",
    "solve_alignment",
    "stream_moments",
    "write_lora",
]
