"""The setting of the guardrail's benchmarks at a tiny size."""

from tiny_topic import topic_texts

from benchmarks.forget.setting import Setting, Size, Texts
from sae_unlearn.evaluation import Choice


SIZE = Size(max_length=32)


def setting_of(model, tokenizer, sae):
    choices = [Choice("w3 w4", ("w5", "w40", "w41", "w42"), 0), Choice("w50 w51", ("w5", "w40", "w41", "w42"), 1)]
    parts = {
        "fit": ("forget", 40, 0),
        "other_fit": ("retain", 64, 0),
        "validation": ("forget", 6, 1),
        "other_validation": ("retain", 6, 1),
        "test": ("forget", 6, 2),
        "other_test": ("retain", 8, 2),
    }
    texts = {part: topic_texts(side, n, seed) for part, (side, n, seed) in parts.items()}
    return Setting(model, tokenizer, sae, Texts("tiny", **texts, choices=choices, other_choices=choices), SIZE)
