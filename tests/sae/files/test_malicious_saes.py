"""A folder of an SAE from anybody: whatever is wrong with it, there is a typed error, and nothing of it is run."""

from contextlib import suppress

import pytest
from lies import trace_of
from malicious_saes import SAES
from watched import watching
from zoo import random_sae

from sae_unlearn import SAEFormatError, SparseAutoencoder, UnlearnError


@pytest.fixture(autouse=True, scope="module")
def _everything_is_imported(tmp_path_factory):
    """Modules that are loaded late are there before anybody watches."""
    for write in (
        lambda f: random_sae(120).save_pretrained(f),
        SAES["SAE: zip bomb"][0],
        SAES["SAE: torch file that runs"][0],
    ):
        folder = tmp_path_factory.mktemp("sae")
        write(folder)
        with suppress(SAEFormatError):
            SparseAutoencoder.from_pretrained(folder)


@pytest.mark.parametrize(("write", "message"), SAES.values(), ids=SAES)
def test_an_sae_that_lies_is_refused_and_nothing_of_it_is_run(write, message, tmp_path):
    folder = tmp_path / "sae"
    folder.mkdir()
    write(folder)
    with watching() as seen, pytest.raises(UnlearnError, match=message) as caught:
        SparseAutoencoder.from_pretrained(folder)
    assert seen == []
    assert str(caught.value).isprintable()
    assert not trace_of(folder).exists()
