"""Alignment: a LoRA that makes activations of known entities look like those of unknown ones."""

from sae_unlearn.alignment.callbacks import RetainBudgetCallback
from sae_unlearn.alignment.closed_form import (
    Damage,
    Moments,
    Projection,
    Solution,
    StayRow,
    TargetRows,
    find_projections,
    solve_alignment,
    stream_moments,
    write_lora,
)
from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.labeling.label import label_entities
from sae_unlearn.alignment.labeling.result import LabeledEntities
from sae_unlearn.alignment.latents import Separation
from sae_unlearn.alignment.trainer import SAEAlignmentTrainer
from sae_unlearn.errors import AlignmentError


__all__ = [
    "AlignmentError",
    "Damage",
    "Entity",
    "EntitySet",
    "LabeledEntities",
    "Moments",
    "Projection",
    "RetainBudgetCallback",
    "SAEAlignmentConfig",
    "SAEAlignmentTrainer",
    "Separation",
    "Solution",
    "StayRow",
    "TargetRows",
    "find_projections",
    "label_entities",
    "solve_alignment",
    "stream_moments",
    "write_lora",
]
