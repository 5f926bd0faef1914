"""A tiny model that refuses, and what it generates."""

import torch
from zoo import EOS, guarded, token_ids

from sae_unlearn import record_firings


MESSAGE = [40, 41, 40, 42, EOS]
IDS = token_ids(12, 10)


def refusing(name="llama", message=MESSAGE, **fields):
    settings = {"action": "refuse", "refusal": "w40 w41 w40 w42", "refusal_ids": message} | fields
    model = guarded(name, **settings).eval()
    if "threshold" not in fields:  # half of the rows fire, in every architecture
        with record_firings(model) as firings, torch.no_grad():
            model(input_ids=IDS)
        model.peft_config["default"].threshold = sorted(f.statistic for f in firings)[len(IDS) // 2]
    return model


def fired_rows(model, ids=IDS, **inputs):
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=ids, **inputs)
    return torch.tensor([f.fired for f in firings])


def generate(model, ids=IDS, **settings):
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": EOS, "pad_token_id": 0} | settings
    return model.generate(input_ids=ids, **settings)[:, ids.shape[1] :]


def told(row):
    row = row.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else row
