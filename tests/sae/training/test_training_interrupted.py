"""An interrupted training of an SAE continues, but not from a checkpoint in part, nor from one of other sizes."""

from dataclasses import replace

import pytest
import torch
from oracles import oracle

from sae_unlearn.sae.training.folding import Standardization
from sae_unlearn.sae.training.harvest import Activations
from sae_unlearn.sae.training.plan import TrainingPlan
from sae_unlearn.sae.training.trainer import train


STEPS, BATCH = 100, 8
PLAN = TrainingPlan(layer=1, d_in=8, d_sae=16, l0=4, rows=40, tokens=400, steps=STEPS, disk_bytes=0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains in one folder, at most a number of steps, and returns the weights and the number of steps."""
    oracle("sae_lens")
    from sae_lens.training.sae_trainer import SAETrainer

    step, taken = SAETrainer.step, []

    def counted(trainer, batch):
        if len(taken) == run.most:
            raise KeyboardInterrupt
        taken.append(batch)
        return step(trainer, batch)

    monkeypatch.setattr(SAETrainer, "step", counted)
    activations = Activations(torch.randn(40, 10, 8, generator=torch.Generator().manual_seed(0)).numpy())
    kept = torch.arange(400)
    by = Standardization.of(activations.tokens(kept))

    def run(plan, most=STEPS):
        run.most = most
        taken.clear()
        weights = train(
            activations, kept, by, plan, tmp_path, batch_size=BATCH, learning_rate=1e-3, seed=0, progress=False
        )
        return weights, len(taken)

    return run


def interrupted(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(PLAN, most=70)
    return sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))


def test_it_continues_at_the_last_checkpoint(run, tmp_path):
    *_, last = interrupted(run, tmp_path)
    assert run(PLAN)[1] == STEPS - int(last.name) // BATCH < STEPS


@pytest.mark.parametrize("file", ["trainer_state.pt", "sae_weights.safetensors", "cfg.json"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_checkpoint_in_part_is_passed_over(run, tmp_path, file, missing):
    *_, before, last = interrupted(run, tmp_path)
    content = (last / file).read_bytes()
    (last / file).unlink()
    if not missing:
        (last / file).write_bytes(content[: len(content) // 2])
    assert run(PLAN)[1] == STEPS - int(before.name) // BATCH


@pytest.mark.parametrize("change", [{"d_sae": 32}, {"l0": 5}, {"steps": 110}])
def test_other_settings_begin_anew(run, tmp_path, change):
    interrupted(run, tmp_path)
    plan = replace(PLAN, **change)
    weights, steps = run(plan, most=plan.steps)
    assert steps == plan.steps
    assert weights["W_enc"].shape == (8, plan.d_sae)
