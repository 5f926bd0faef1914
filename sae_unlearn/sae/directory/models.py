"""Names of models: Hub ids of SAELens' short names, depths, and base models of chat models."""

from __future__ import annotations

import re
from pathlib import PurePath


HUB_IDS = {
    "gemma-2b": "google/gemma-2b",
    "gemma-2b-it": "google/gemma-2b-it",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    "gpt2-small": "openai-community/gpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
}
"""SAELens' name of a model -> its id on the Hub; names that have an owner are ids already."""

LAYERS = {
    "deepseek-r1-distill-llama-8b": 32,
    "gemma-2-27b": 46,
    "gemma-2-2b": 26,
    "gemma-2-9b": 42,
    "gemma-2b": 18,
    "gemma-3-12b": 48,
    "gemma-3-1b": 26,
    "gemma-3-270m": 18,
    "gemma-3-27b": 62,
    "gemma-3-4b": 34,
    "gpt-oss-20b": 24,
    "gpt2": 12,
    "llama-3-8b": 32,
    "llama-3.1-8b": 32,
    "llama-3.3-70b": 80,
    "mistral-7b-v0.1": 32,
    "pythia-70m-deduped": 6,
    "qwen2.5-7b": 28,
    "qwen3-1.7b": 28,
    "qwen3-30b-a3b": 48,
    "qwen3-8b": 36,
    "qwen3.5-27b": 64,
    "qwen3.5-2b": 24,
    "qwen3.5-35b-a3b": 40,
    "qwen3.5-9b": 32,
}
"""Number of decoder layers, by `base_key`."""

_TUNED = {"it", "instruct", "chat", "hf", "base", "pt", "sft", "dpo", "thinking", "meta", "2507"}
_STORED = {"bnb", "4bit", "8bit", "awq", "gptq", "gguf", "fp8", "bf16", "int4", "int8", "unsloth"}


def key(model: str) -> str:
    """Return the last part of a model's name in lower case, the same for a folder and a copy."""
    return PurePath(model.rstrip("/")).name.lower()


def base_key(model: str) -> str:
    """Return `key` without the parts of a chat model's name or a storage format: the base model's key."""
    parts = re.split(r"[-_]", key(model))
    kept = [part for part in parts if part not in _TUNED | _STORED]
    return "-".join(kept)


def tuning(model: str) -> bool:
    """Return True if the name says that the model was tuned to follow instructions."""
    return bool({"it", "instruct", "chat", "thinking"} & set(re.split(r"[-_]", key(model))))
