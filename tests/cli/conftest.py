"""Fixtures that these files share."""

import json

import pytest
from commands import fit_arguments
from tiny_topic import save_corpora, save_parts, topic_texts

from sae_unlearn.cli.main import main


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A folder with `model`, `sae`, texts, and the fitted guardrail `fitted`."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    save_corpora(folder)
    (folder / "more.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in topic_texts("forget", 8, seed=4)))
    (folder / "other.csv").write_text(
        "id,body\n" + "\n".join(f"{i},{t}" for i, t in enumerate(topic_texts("retain", 20, seed=4)))
    )
    assert main(fit_arguments(folder, folder / "fitted")) == 0
    return folder
