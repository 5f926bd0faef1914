"""A guardrail to be pushed to the Hub and attached from there."""

from functools import partial

from zoo import base_model, logits_of, plant, planted_config, token_ids

from sae_unlearn import attach_guardrail
from sae_unlearn.guardrail import GuardedModel


IDS = token_ids(8, 12)
logits = partial(logits_of, input_ids=IDS)
REPO = "me/forget"


def guarded(seed=0, **fields):
    model = GuardedModel(base_model("llama"), planted_config(**fields))
    plant(model, seed=seed)
    return model.eval()


def attach(source=REPO, **kwargs):
    return attach_guardrail(base_model("llama"), source, **kwargs)


def origin(model):
    return model.peft_config["default"].origin
