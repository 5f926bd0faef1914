"""Readers of published data sets, by Hub id or from a folder. They return `Fact`s, `Choice`s or texts."""

from sae_unlearn.evaluation.datasets.mmlu import mmlu_choices
from sae_unlearn.evaluation.datasets.muse import muse_facts, muse_passages, muse_texts
from sae_unlearn.evaluation.datasets.questions import read_questions
from sae_unlearn.evaluation.datasets.registry import READERS, read_named
from sae_unlearn.evaluation.datasets.relations import relation_facts
from sae_unlearn.evaluation.datasets.rwku import rwku_facts
from sae_unlearn.evaluation.datasets.tofu import tofu_choices, tofu_facts
from sae_unlearn.evaluation.datasets.wmdp import wmdp_choices


__all__ = [
    "READERS",
    "mmlu_choices",
    "muse_facts",
    "muse_passages",
    "muse_texts",
    "read_named",
    "read_questions",
    "relation_facts",
    "rwku_facts",
    "tofu_choices",
    "tofu_facts",
    "wmdp_choices",
]
