"""`trainer.push_to_hub` and the way back, through the real `huggingface_hub` and a stand-in of the Hub's interface."""

import huggingface_hub
import pytest
import torch
from hub_requests import OWNER, READER, STRANGER
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from peft import PeftModel
from tiny_entities import parts, settings
from zoo import token_ids

from sae_unlearn import SAEAlignmentTrainer


REPO = "me/forget-thing"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("out")
    trainer = SAEAlignmentTrainer(args=settings(folder, hub_model_id="forget-thing", max_steps=2), **parts())
    trainer.train()
    trainer.evaluate()
    return trainer


@pytest.fixture
def trainer(trained):
    trained.hub_model_id = None
    trained.args.hub_token = trained.args.hub_revision = trained.args.hub_private_repo = None
    return trained


def logits(model):
    with torch.no_grad():
        return model(input_ids=token_ids(4, 8)).logits


@pytest.mark.slow
def test_it_is_pushed_with_our_card_and_loads_at_its_commit(stand_in, trainer):
    commit = trainer.push_to_hub(token=OWNER)
    files = stand_in.repositories[REPO].at("main").files
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= files.keys()
    card = ModelCard.load(REPO)
    assert card.data.base_model == "tiny-llama"
    assert {"unlearning", "lora"} <= set(card.data.tags)
    assert "What it does not do" in card.text
    assert "{{" not in card.text
    assert "KL(base, tuned) on held-out retain rows" in card.text
    found = PeftModel.from_pretrained(bare(), REPO, revision=commit.oid)
    assert torch.equal(logits(found.eval()), logits(trainer.model.eval()))


def bare():
    return parts()["model"].eval()


def test_what_is_pushed_names_no_target_and_holds_no_token(stand_in, trainer):
    trainer.args.hub_token = OWNER
    trainer.push_to_hub()
    assert trainer.args.hub_token == OWNER
    names = parts()["train_dataset"].names
    for path, data in stand_in.repositories[REPO].at("main").files.items():
        assert OWNER.encode() not in data, path
        assert path.startswith("tokenizer") or not any(name.encode() in data for name in names), path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_what_is_pushed_while_it_trains_has_our_card_and_holds_no_token(stand_in, tmp_path, strategy):
    names = {"hub_model_id": "forget-thing", "hub_token": OWNER, "hub_always_push": True, "hub_strategy": strategy}
    args = settings(tmp_path, push_to_hub=True, save_strategy="steps", save_steps=2, max_steps=4, **names)
    SAEAlignmentTrainer(args=args, **parts()).train()
    commits = [commit for commit in stand_in.repositories[REPO].commits.values() if commit.files]
    assert {"Training in progress, step 2", "Training in progress, step 4"} <= {commit.message for commit in commits}
    for commit in commits:
        assert not [path for path, data in commit.files.items() if OWNER.encode() in data]
        cards = {path: data for path, data in commit.files.items() if path.endswith("README.md")}
        assert ("README.md" in cards) == ("adapter_config.json" in commit.files)
        assert all(b"What it does not do" in card for card in cards.values())
    assert args.hub_token == OWNER


@pytest.mark.slow
def test_a_pinned_commit_is_honoured_after_a_newer_push(stand_in, trainer):
    old = trainer.push_to_hub(token=OWNER)
    before = logits(trainer.model.eval())
    with torch.no_grad():
        changed = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
        changed.add_(0.1)
    try:
        trainer.push_to_hub(token=OWNER)
    finally:
        with torch.no_grad():
            changed.sub_(0.1)
    assert torch.equal(logits(PeftModel.from_pretrained(bare(), REPO, revision=old.oid).eval()), before)
    assert not torch.equal(logits(PeftModel.from_pretrained(bare(), REPO).eval()), before)


def test_a_private_repository_opens_with_its_owner_s_token_only(stand_in, trainer):
    trainer.push_to_hub(token=OWNER, private=True)
    for token in (None, STRANGER):
        with pytest.raises((ValueError, OSError, RepositoryNotFoundError)):
            PeftModel.from_pretrained(bare(), REPO, token=token)
    PeftModel.from_pretrained(bare(), REPO, token=READER)


@pytest.mark.parametrize("token", [None, READER])
def test_a_push_that_is_not_allowed_is_the_hub_s_own_error(stand_in, trainer, token):
    with pytest.raises(HfHubHTTPError, match=r"401|403"):
        trainer.push_to_hub(token=token)
    assert stand_in.repositories == {}


@pytest.mark.slow
def test_an_interrupted_push_leaves_nothing_and_can_be_repeated(stand_in, trainer):
    stand_in.break_at = "POST .*/commit/"
    with pytest.raises(Exception, match=r"(?i)disconnected|connection"):
        trainer.push_to_hub(token=OWNER)
    assert stand_in.repositories[REPO].at("main").files == {}
    stand_in.break_at = None
    trainer.push_to_hub(token=OWNER)
    assert torch.equal(logits(PeftModel.from_pretrained(bare(), REPO).eval()), logits(trainer.model.eval()))


def test_it_loads_from_the_cache_without_the_hub(stand_in, trainer, monkeypatch):
    commit = trainer.push_to_hub(token=OWNER)
    PeftModel.from_pretrained(bare(), REPO, revision=commit.oid)
    stand_in.stop()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = PeftModel.from_pretrained(bare(), REPO, revision=commit.oid)
    assert torch.equal(logits(found.eval()), logits(trainer.model.eval()))
