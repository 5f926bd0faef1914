"""Attacks that try to recover forgotten knowledge. One module each, whose docstring states the budget."""

from sae_unlearn.evaluation.audit.attacks.base import AttackPoint
from sae_unlearn.evaluation.audit.attacks.dilution import dilution_attack
from sae_unlearn.evaluation.audit.attacks.direction import direction_attack, displacement, known_direction
from sae_unlearn.evaluation.audit.attacks.neighbors import benign_neighbors
from sae_unlearn.evaluation.audit.attacks.relearning import relearning_attack, split_subjects
from sae_unlearn.evaluation.audit.attacks.removal import removal_attack
from sae_unlearn.evaluation.audit.attacks.rephrasing import rephrasing_attack
from sae_unlearn.evaluation.audit.attacks.rounding import rounding_attack
from sae_unlearn.evaluation.audit.attacks.spelling import spelling_attack
from sae_unlearn.evaluation.audit.attacks.splitting import splitting_attack
from sae_unlearn.evaluation.audit.attacks.unnamed import unnamed_recall


__all__ = [
    "AttackPoint",
    "benign_neighbors",
    "dilution_attack",
    "direction_attack",
    "displacement",
    "known_direction",
    "relearning_attack",
    "removal_attack",
    "rephrasing_attack",
    "rounding_attack",
    "spelling_attack",
    "split_subjects",
    "splitting_attack",
    "unnamed_recall",
]
