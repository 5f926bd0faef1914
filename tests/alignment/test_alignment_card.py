"""The card of an alignment: licenses, the repository, and where its SAE comes from."""

import logging
from pathlib import Path

import pytest
import torch
from hub_requests import OWNER
from huggingface_hub import HfApi, ModelCard
from tiny_entities import parts, settings

from sae_unlearn import SAEAlignmentTrainer


COMMIT = "f" * 40


def trainer(folder, source=None, **options):
    torch.manual_seed(0)
    given = parts()
    given["sae"].source = {} if source is None else source
    return SAEAlignmentTrainer(args=settings(folder, **options), **given)


def saved_card(trained, folder):
    trained.save_model(str(folder))
    return ModelCard.load(Path(folder) / "README.md")


def sae_line(card):
    return next(line for line in card.text.splitlines() if line.startswith("- Sparse autoencoder:"))


def publish(repo_id, license):
    api = HfApi(token=OWNER)
    api.create_repo(repo_id)
    card = f"---\nlicense: {license}\n---\n".encode()
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)


@pytest.mark.slow
def test_a_push_names_its_license_those_of_base_and_sae_and_its_repository(stand_in, tmp_path):
    publish("me/sae", "cc-by-4.0")
    publish("me/base", "gemma")
    given = trainer(tmp_path, {"id": "me/sae", "revision": COMMIT}, hub_model_id="forget-thing")
    given.push_to_hub(token=OWNER, license="apache-2.0")
    card = ModelCard.load("me/forget-thing")
    assert card.data.license == "apache-2.0"
    assert "- Base model: `tiny-llama`, license not recorded; see its page." in card.text
    assert "- Sparse autoencoder: `me/sae`, license `cc-by-4.0`." in card.text
    assert 'PeftModel.from_pretrained(model, "me/forget-thing", revision=' in card.text


def test_the_license_of_the_base_is_asked_for_too(stand_in, tmp_path):
    publish("me/base", "gemma")
    given = parts()
    given["model"].config._name_or_path = "me/base"
    SAEAlignmentTrainer(args=settings(tmp_path, hub_model_id="me/it"), **given).push_to_hub(token=OWNER)
    assert "- Base model: `me/base`, license `gemma`." in ModelCard.load("me/it").text


def test_what_is_pushed_while_it_trains_names_them_too(stand_in, tmp_path):
    publish("me/sae", "cc-by-4.0")
    hub = {"push_to_hub": True, "hub_model_id": "it", "hub_token": OWNER, "hub_always_push": True}
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer(tmp_path, {"id": "me/sae", "revision": COMMIT}, license="gemma", **hub, **steps).train()
    commits = [commit for commit in stand_in.repositories["me/it"].commits.values() if "README.md" in commit.files]
    assert commits
    for commit in commits:
        text = commit.files["README.md"].decode()
        assert "license: gemma\n" in text
        assert "`me/sae`, license `cc-by-4.0`" in text
        assert '"me/it", revision=' in text


def test_the_settings_give_the_license_and_the_repository_of_what_is_only_saved(tmp_path):
    source = {"id": "me/sae", "revision": COMMIT, "license": "mit"}
    card = saved_card(trainer(tmp_path, source, license="gemma", hub_model_id="me/forget-thing"), tmp_path / "saved")
    assert card.data.license == "gemma"
    assert "`me/sae`, license `mit`" in card.text
    assert 'from_pretrained(model, "me/forget-thing", revision=' in card.text
    bare = saved_card(trainer(tmp_path, source, hub_model_id="without-owner"), tmp_path / "bare")
    assert bare.data.license is None
    assert 'from_pretrained(model, "this repository", revision=' in bare.text


def test_without_an_sae_there_is_no_license_of_one(tmp_path):
    given = parts() | {"sae": None}
    card = saved_card(SAEAlignmentTrainer(args=settings(tmp_path, layer=1, min_separation=0), **given), tmp_path / "s")
    assert sae_line(card) == "- Sparse autoencoder: none."
    assert card.text.count("- Sparse autoencoder:") == 1


def test_a_license_that_was_given_once_stays_and_what_the_card_cannot_hold_is_said(tmp_path, caplog):
    given = trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "sae_unlearn"):
        given.create_model_card(license="gemma", model_name="it", dataset="names", language=None)
    assert "The card ignores dataset" in caplog.text
    assert ModelCard.load(tmp_path / "README.md").data.license == "gemma"
    assert saved_card(given, tmp_path / "later").data.license == "gemma"


@pytest.mark.parametrize("path", ["secret_project/my-sae", "~/secret_project/my-sae", "/secret_project/my-sae"])
def test_of_an_sae_from_a_folder_only_the_name_is_shown(tmp_path, path):
    card = saved_card(trainer(tmp_path, {"id": path, "revision": None}), tmp_path / "saved")
    assert sae_line(card) == "- Sparse autoencoder: id `my-sae`, from a local folder."
    assert "secret_project" not in card.content


def test_of_an_sae_from_the_hub_repository_and_commit_are_shown(tmp_path):
    card = saved_card(trainer(tmp_path, {"id": "me/sae", "revision": COMMIT}), tmp_path / "saved")
    assert sae_line(card) == f"- Sparse autoencoder: id `me/sae`, revision `{COMMIT}`."
