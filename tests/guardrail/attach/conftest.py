"""Fixtures that these files share."""

import pytest
from attached import fitted_by_hand, logits


@pytest.fixture(scope="session")
def fitted():
    model = fitted_by_hand(min_tokens=1)
    return model, logits(model)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted[0].save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"
