"""A tiny random model with entities that its SAE can tell apart: known ones end in words of one kind, unknown ones in
words of another."""

import random

from tiny_topic import WORDS, tiny_parts, topic_texts

from sae_unlearn import SparseAutoencoder
from sae_unlearn.alignment.config import SAEAlignmentConfig
from sae_unlearn.alignment.entities import EntitySet


TEMPLATES = {"thing": ["w60 w61 {entity}", "w62 {entity} w63"]}
HELD_OUT = {"thing": ["w64 w65 {entity}"]}
QUESTIONS = {"thing": {"colour": ["w66 {entity} w67"]}}


def entities(side: str, number: int, seed: int = 0, kind: str = "thing") -> EntitySet:
    """Entities of one kind, with names of two words of which the last tells the kind."""
    draw = random.Random(f"{side}{seed}")
    last = list(WORDS["forget" if side == "known" else "retain"])[:8]
    names: set[str] = set()
    while len(names) < number:
        names.add(f"w{draw.randrange(70, 94)} w{draw.choice(last)}")
    return EntitySet(
        [{"entity": name, "entity_type": kind, "attributes": {"colour": ["w68"]}} for name in sorted(names)]
    )


def parts(name: str = "llama") -> dict:
    """Arguments of a trainer, but for its settings."""
    model, tokenizer, sae = tiny_parts(name)
    known = entities("known", 36)
    targets = known.sample(4, seed=1)
    return {
        "model": model,
        "processing_class": tokenizer,
        "sae": sae,
        "train_dataset": targets,
        "known": known.without(targets),
        "unknown": entities("unknown", 24),
        "retain_dataset": topic_texts("retain", 24, words=6),
    }


def settings(folder: object, **options: object) -> SAEAlignmentConfig:
    """Settings for a few quick and deterministic steps of training."""
    options = {
        "init": "zero",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 1,
        "templates": TEMPLATES,
        "held_out_templates": HELD_OUT,
        "questions": QUESTIONS,
        "num_known_latents": 8,
        "num_unknown_latents": 8,
        "max_generic_frequency": 1.0,
        "short_prompts": [],
        "question_forms": False,
        **options,
    }
    return SAEAlignmentConfig(output_dir=str(folder), **options)


def tiny_sae() -> SparseAutoencoder:
    return tiny_parts()[2]
