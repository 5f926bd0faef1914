"""What of an SAE's origin is published: a repository with its commit whole, of a folder only the name."""

import pytest

from sae_unlearn.cards.provenance import public_source, source_line


COMMIT = "f" * 40


@pytest.mark.parametrize(
    "path", ["here/my-sae", "~/here/my-sae", "/here/my-sae", "/here/my-sae/", "./my-sae", "my-sae"]
)
def test_of_a_folder_only_its_name(path):
    given = {"id": path, "revision": None, "architecture": "jumprelu"}
    found = public_source(given)
    assert found == {"id": "my-sae", "revision": None, "architecture": "jumprelu", "local": True}
    assert public_source(found) == found
    assert given["id"] == path
    assert source_line(found) == "id `my-sae`, architecture `jumprelu`, from a local folder"


def test_of_a_repository_everything():
    given = {"id": "org/sae", "revision": COMMIT, "subfolder": "layer_3", "license": "mit"}
    assert public_source(given) == given
    assert source_line(given) == f"id `org/sae`, revision `{COMMIT}`, subfolder `layer_3`"


@pytest.mark.parametrize("given", [{}, {"id": None, "format": "saelens"}])
def test_of_nowhere_nothing(given):
    assert public_source(given) == given
    assert source_line(given) == "not recorded"
