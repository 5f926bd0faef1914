"""What `guardrail_status` says of a model is what a call of it does, whatever was done to the model."""

import copy

import pytest
import torch
from torch import nn
from zoo import EOS, base_model, guarded, plant, planted_config, token_ids

from sae_unlearn import GuardrailNotReady, guardrail_status
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks


IDS = token_ids(6, 12)
LAYER = 2


def bare(model):
    return model.get_base_model()


def layers(model):
    return bare(model).model.layers


def fresh(index=0):
    return copy.deepcopy(base_model("llama").model.layers[index])


def wrapped(model):
    class Wrapper(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, *args, **kwargs):
            return self.layer(*args, **kwargs)

    layers(model)[LAYER] = Wrapper(layers(model)[LAYER])


def moved(model, places):
    bare(model).model.layers = nn.ModuleList([layers(model)[place] for place in places])
    bare(model).config.num_hidden_layers = len(places)


def moved_and_wrapped(model):
    moved(model, [0, 1, 2, 2, 3])
    wrapped(model)


def second(model):
    model.add_adapter("second", planted_config(layer=1))
    plant(model, "second", seed=3)
    model.base_model.set_adapter(["default", "second"])


def spoilt(model, **fields):
    vars(model.peft_config["default"]).update(fields)


def offed(model, change):
    model.base_model.disable_adapter_layers()
    change(model)


CHANGES = {
    "nothing": lambda m: None,
    "disabled": lambda m: m.base_model.disable_adapter_layers(),
    "recording": lambda m: spoilt(m, action="record"),
    "a second": second,
    "a layer inserted before": lambda m: layers(m).insert(0, fresh()),
    "a layer inserted at its place": lambda m: layers(m).insert(LAYER, fresh()),
    "a layer inserted behind": lambda m: layers(m).insert(LAYER + 1, fresh()),
    "a layer appended": lambda m: layers(m).append(fresh()),
    "a layer removed before": lambda m: moved(m, [0, 2, 3]),
    "its layer removed": lambda m: moved(m, [0, 1, 3]),
    "a layer removed behind": lambda m: moved(m, [0, 1, 2]),
    "layers in another order": lambda m: moved(m, [0, 2, 1, 3]),
    "layers behind it in another order": lambda m: moved(m, [1, 0, 2, 3]),
    "its layer replaced": lambda m: layers(m).__setitem__(LAYER, fresh(LAYER)),
    "its layer replaced by a copy": lambda m: layers(m).__setitem__(LAYER, copy.deepcopy(layers(m)[LAYER])),
    "its layer wrapped": wrapped,
    "fewer layers run": lambda m: setattr(bare(m).config, "num_hidden_layers", LAYER),
    "just enough layers run": lambda m: setattr(bare(m).config, "num_hidden_layers", LAYER + 1),
    "hooks of its layer cleared": lambda m: layers(m)[LAYER]._forward_hooks.clear(),
    "hooks before the backbone cleared": lambda m: bare(m).model._forward_pre_hooks.clear(),
    "hooks behind the backbone cleared": lambda m: bare(m).model._forward_hooks.clear(),
    "hooks before the model cleared": lambda m: bare(m)._forward_pre_hooks.clear(),
    "hooks of backbone and layer cleared": lambda m: (
        bare(m).model._forward_hooks.clear(),
        layers(m)[LAYER]._forward_hooks.clear(),
    ),
    "every hook cleared": lambda m: [
        hooks.clear() for module in m.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ],
    "another backbone": lambda m: setattr(bare(m), "model", base_model("llama").model),
    "a threshold out of reach": lambda m: spoilt(m, threshold=1.0),
    "no threshold": lambda m: spoilt(m, threshold=None),
    "weights lost": lambda m: layers(m)[LAYER].guardrail.guardrail("default").encoder.weight.data.fill_(torch.nan),
    "a copy": lambda m: None,
    "its layer run twice": lambda m: moved(m, [0, 1, 2, 2, 3]),
    "its layer run twice, apart": lambda m: moved(m, [2, 0, 2, 3]),
    "its layer run twice, once wrapped": lambda m: moved_and_wrapped(m),
    "its layer twice in the list, run once": lambda m: (
        moved(m, [0, 1, 2, 2]),
        setattr(bare(m).config, "num_hidden_layers", LAYER + 1),
    ),
    "another layer run twice": lambda m: moved(m, [0, 1, 2, 3, 3]),
}
CHANGES |= {
    f"disabled, {name}": lambda m, name=name: offed(m, CHANGES[name])
    for name in ("its layer replaced", "a layer inserted before", "no threshold", "hooks before the backbone cleared")
}


def call(model, cached=False):
    """What becomes of text."""
    try:
        with torch.no_grad():
            found = model(input_ids=IDS, use_cache=cached).logits
    except GuardrailNotReady:
        return "raises"
    guards = [module for module in model.modules() if hasattr(module, "guard_config")]
    for guard in guards:
        guard.bypass(True)
    with torch.no_grad():
        unguarded = model(input_ids=IDS, use_cache=False).logits
    for guard in guards:
        guard.bypass(False)
    return "unguarded" if torch.equal(found, unguarded) else "guarded"


@pytest.mark.parametrize("change", CHANGES)
def test_status_and_call_agree(change):
    model = guarded("llama", layer=LAYER, threshold=0.2)
    CHANGES[change](model)
    model = copy.deepcopy(model) if change == "a copy" else model
    verdict = guardrail_status(model).verdict
    assert verdict == call(model), str(guardrail_status(model))
    if len(layers(model)) == 4:  # with more, two layers write to one place in the cache
        assert verdict == call(model, cached=True), str(guardrail_status(model))


def test_the_table_holds_all_three_answers():
    said = set()
    for change in ("nothing", "disabled", "its layer replaced", "every hook cleared"):
        model = guarded("llama", layer=LAYER, threshold=0.2)
        CHANGES[change](model)
        said.add(guardrail_status(model).verdict)
    assert said == {"guarded", "raises", "unguarded"}


def test_a_refusal_that_nobody_would_write_raises():
    model = guarded("llama", action="refuse", refusal="w5", refusal_ids=[5, EOS], threshold=0.2)
    bare(model)._forward_hooks.clear()
    assert guardrail_status(model).verdict == call(model) == "raises"
    assert any(isinstance(hook.__self__, BackboneHooks) for hook in bare(model).model._forward_hooks.values())
