"""Everything that one seed of the synthetic benchmark starts from: the world, the model, its SAE and the gold model."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from benchmarks.synthetic.model import ModelConfig, pretrain
from benchmarks.synthetic.sae import SAEConfig, explained_variance, harvest, train_sae
from benchmarks.synthetic.world import World, WorldConfig
from sae_unlearn import SparseAutoencoder
from sae_unlearn.errors import UnlearnError


@dataclass(frozen=True)
class SettingConfig:
    """The sizes of everything."""

    world: WorldConfig = field(default_factory=WorldConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)

    @classmethod
    def full(cls, seed: int) -> SettingConfig:
        """The benchmark's own size: about 100 seconds of one CPU core for each of the two models."""
        return cls(WorldConfig(seed=seed), ModelConfig(seed=seed), SAEConfig(seed=seed))

    @classmethod
    def small(cls, seed: int = 0) -> SettingConfig:
        """A size for tests: a few seconds for each model."""
        shares = {"people": 0.6, "passers_by": 0.1, "capitals": 0.1, "sums": 0.14, "grammar": 0.04, "refusals": 0.02}
        return cls(
            WorldConfig(
                seed, frequent=22, medium=2, rare=2, never=24, targets=5, entity_types=("player",), shares=shares
            ),
            ModelConfig(("near", "far"), width=64, steps=200, batch_size=64, learning_rate=1e-2, seed=seed),
            SAEConfig(layer=0, d_sae=256, k=12, sentences=1500, steps=150, seed=seed),
        )


@dataclass
class Setting:
    """One seed's world and models. `base` is the model that is to forget; it may come back with an adapter on it."""

    config: SettingConfig
    world: World
    tokenizer: PreTrainedTokenizerFast
    base: Qwen2ForCausalLM
    gold: Qwen2ForCausalLM
    sae: SparseAutoencoder
    facts: dict[str, Any]

    def fresh_model(self) -> Qwen2ForCausalLM:
        """A copy of the base model that may be changed."""
        model = Qwen2ForCausalLM(self.base.config)
        model.load_state_dict(self.base.state_dict())
        model.generation_config.eos_token_id = None
        return model.eval()


def prepare(config: SettingConfig, folder: Path | None = None) -> Setting:
    """Train what is not in `folder` yet (its `base`, `gold` and `sae`), and read what is.

    Raises:
        UnlearnError: the folder holds models of other sizes.
    """
    world = World(config.world)
    tokenizer = world.tokenizer()
    names = frozenset(person.name for person in world.targets)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / "setting.json"
        if record.exists() and json.loads(record.read_text()) != json.loads(json.dumps(asdict(config))):
            raise UnlearnError(f"folder={str(folder)!r}: expected the settings of {record}. Use another folder.")
        record.write_text(json.dumps(asdict(config), indent=1))
    facts: dict[str, Any] = {}

    def model(name: str, without: frozenset[str]) -> Qwen2ForCausalLM:
        if folder is not None and (folder / name / "model.safetensors").exists():
            found = Qwen2ForCausalLM.from_pretrained(folder / name).eval()
            found.generation_config.eos_token_id = None
            return found
        start = time.process_time()
        found = pretrain(world, config.model, tokenizer, without)
        facts[f"{name}_cpu_seconds"] = round(time.process_time() - start)
        if folder is not None:
            found.save_pretrained(folder / name)
        return found

    base, gold = model("base", frozenset()), model("gold", names)
    if folder is not None and (folder / "sae" / "cfg.json").exists():
        sae = SparseAutoencoder.from_pretrained(folder / "sae")
    else:
        start = time.process_time()
        sae = train_sae(base, tokenizer, world, config.sae)
        facts["sae_cpu_seconds"] = round(time.process_time() - start)
        if folder is not None:
            sae.save_pretrained(folder / "sae")
    explained, active = explained_variance(
        sae, harvest(base, tokenizer, world, config.sae, config.sae.seed + 2000, 500)
    )
    facts |= {"sae_explained_variance": explained, "sae_active_latents": active}
    return Setting(config, world, tokenizer, base, gold, sae, facts)
