"""A guardrail of three features, to be attached to a tiny model, and a look at whether a model was left untouched."""

import json
from functools import partial

from safetensors.torch import load_file, save_file
from zoo import base_model, logits_of, planted_config, random_sae, token_ids

from sae_unlearn import fit_guardrail
from sae_unlearn.guardrail import guard_layers


IDS = token_ids(24, 12)
logits = partial(logits_of, input_ids=IDS)
tiny_sae = partial(random_sae, 120)
COMMIT, OTHER = "a" * 40, "b" * 40


def by_hand(**fields):
    return planted_config(**{"feature_ids": [3, 8, 21], "clamp_value": -6.0, "threshold": 0.15} | fields)


def fitted_by_hand(**fields):
    """A tiny model with that guardrail."""
    given = {"features": [3, 8, 21], "threshold": 0.15, "clamp_value": -6.0} | fields
    return fit_guardrail(base_model("llama"), None, tiny_sae(), **given)


def state_of(model):
    """Modules, hooks and configs, by name: what a failed attachment may not change."""
    modules = {
        name: (type(module), len(module._forward_hooks), len(module._forward_pre_hooks), len(module._buffers))
        for name, module in model.named_modules()
    }
    return modules, list(model.state_dict()), sorted(vars(model)), list(getattr(model, "model_tags", None) or [])


def assert_untouched(model):
    assert not guard_layers(model)
    assert not any("sae_guardrail" in name for name in model.state_dict())
    assert not any(
        type(getattr(hook, "__self__", None)).__module__.startswith("sae_unlearn")
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    assert not hasattr(model, "peft_config")


def tensors_edit(change):
    def lie(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        found = {key.split("guardrail.sae_guardrail_")[1]: key for key in tensors}
        change(tensors, found)
        save_file({key: t.contiguous() for key, t in tensors.items()}, path)
        unseal(folder)

    return lie


def unseal(folder):
    """As one does who changes a guardrail by hand."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_sha256")}))
