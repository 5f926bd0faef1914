"""What the steps for a decoded token are compared on with torch's operators, which they stand for."""

import torch
from zoo import PARAGRAPHS, guarded, padded, plant, planted_config, token_ids

from sae_unlearn import enable_guardrails, record_firings


GREEDY = {"max_new_tokens": 6, "do_sample": False}
FIELDS = {
    "default": {},
    "all": {"clamp_mode": "all", "gate_scope": "prefix"},
    "not_sticky": {"sticky": False, "threshold": 0.5},
    "quiet": {"special_ids": None, "threshold": 0.999},
    "features": {"num_features": 37},
    "weighed": {"feature_evidence": [0.25, 3.0, 1.5, 2.0, 0.75, 1.0], "threshold": 1.0},
    "windowed": {"statistic": "windowed", "threshold": 0.5},
    "windowed_all": {"statistic": "windowed", "threshold": 0.4, "clamp_mode": "all", "gate_scope": "prefix"},
    "outliers": {"outlier_norm": 20.0, "threshold": 0.1},
}
LEFT_TO_OPERATORS = {
    "record": {"action": "record"},
    "columns": {"counting": "columns"},
    "messages": {"boundary_ids": [96]},
    "paragraphs": PARAGRAPHS,
}


def counted(step):
    """A step that does the same, and the list that grows by one at each of its calls."""
    calls = []

    def counting(*args):
        calls.append(args)
        return step(*args)

    return counting, calls


def generated(model, **how):
    """Tokens, logits and records of a padded batch with an EOS amid a prompt."""
    batch = padded([token_ids(1, n, seed=n)[0] for n in (4, 7, 12)])
    batch["input_ids"][1, -2] = 96
    with record_firings(model) as firings, torch.no_grad():
        out = model.generate(**batch, **GREEDY | how, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits), list(firings)


def two_guardrails():
    """A model with two guardrails at one layer, of other features, which fire on other rows."""
    model = guarded("llama", min_tokens=8, threshold=0.5)
    model.add_adapter("second", planted_config(min_tokens=4, threshold=0.3, num_features=5, clamp_mode="all"))
    plant(model, "second", seed=7)
    enable_guardrails(model, ["default", "second"])
    return model
