"""Calls of a guarded model that must be guarded or raise, as `guardrail_status` says before."""

import pytest
import torch
from zoo import token_ids

from sae_unlearn import GuardrailNotReady, guardrail_status


IDS = token_ids(6, 12)
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def assert_guarded(model, expected, atol=0.0):
    assert guardrail_status(model).verdict == "guarded", str(guardrail_status(model))
    found = logits(model)
    torch.testing.assert_close(found, expected[0], atol=atol, rtol=atol)
    assert not torch.allclose(found, expected[1], atol=1e-2)


def assert_raises(model, match):
    status = guardrail_status(model)
    assert status.verdict == "raises", str(status)
    with pytest.raises(GuardrailNotReady, match=match):
        logits(model)


def whole(model):
    return model.get_base_model()
