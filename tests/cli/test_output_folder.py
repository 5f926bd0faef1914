"""A command that fails or is interrupted leaves no output folder behind, and one that was there stays as it was."""

import pytest
from commands import fails
from tiny_topic import save_corpora, save_parts, topic_texts

from sae_unlearn.cli import inputs as loading
from sae_unlearn.cli import outputs
from sae_unlearn.cli.main import main


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    save_corpora(folder)
    (folder / "people.json").write_text("[]")
    return folder


def calls(parts):
    model, sae, text = (str(parts / name) for name in ("model", "sae", "forget.txt"))
    people = str(parts / "people.json")
    return {
        "fit": ["--model", model, "--sae", sae, "--forget", text, "--retain", str(parts / "retain.json")],
        "train": ["--model", model, "--sae", sae, "--targets", people, "--known", people, "--unknown", people],
        "evaluate": ["--model", model, "--forget", text],
        "audit": ["--model", model, "--adapter", sae, "--forget", people, "--retain", people],
        "demo": [],
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("command", ["fit", "train", "evaluate", "audit", "demo"])
def test_a_failure_leaves_nothing(parts, tmp_path, monkeypatch, command, error):
    def broken(*args, **kwargs):
        raise error("half way")

    monkeypatch.setattr(loading, "load_model", broken)
    monkeypatch.setattr("sae_unlearn.demo.load_demo_model", broken)
    assert main([command, *calls(parts)[command], "--output", str(tmp_path / "a" / "b")]) != 0
    assert not (tmp_path / "a").exists()
    (tmp_path / "there").mkdir()
    assert main([command, *calls(parts)[command], "--output", str(tmp_path / "there")]) != 0
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_fit_that_fails_late_leaves_nothing(parts, tmp_path, monkeypatch, error):
    def broken(*args, **kwargs):
        raise error("half way")

    monkeypatch.setattr("sae_unlearn.guardrail.fit_guardrail", broken)
    assert main(["fit", *calls(parts)["fit"], "--output", str(tmp_path / "out")]) != 0
    assert not (tmp_path / "out").exists()


def test_a_folder_that_a_library_made_goes_where_it_is_empty(tmp_path):
    for kept in (False, True):
        with pytest.raises(KeyboardInterrupt):
            made_and_interrupted(tmp_path / "out", kept)
        assert (tmp_path / "out").exists() is kept


def made_and_interrupted(folder, kept):
    with outputs.not_left_empty(folder):
        (folder / "checkpoint" if kept else folder).mkdir(parents=True)
        raise KeyboardInterrupt


def test_a_folder_in_a_file_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("\n".join(topic_texts("forget", 1)))
    for output in (tmp_path / "file", tmp_path / "file" / "inside"):
        fails(
            capsys, ["fit", "--model", "none", "--sae", "none", "--output", output], "expected a folder, got the file"
        )
