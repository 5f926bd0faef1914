"""Fixtures that these files share."""

import pytest
from attached import logits, tiny_sae
from zoo import base_model

from sae_unlearn import fit_guardrail


@pytest.fixture(scope="session")
def fitted():
    model = fit_guardrail(
        base_model("llama"), None, tiny_sae(), features=[3, 8, 21], threshold=0.15, clamp_value=-6.0, min_tokens=1
    )
    return model, logits(model)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted[0].save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"
