"""Ways to run one forward pass. A mode is a function of a `Case`; its docstring says what is held."""

import copy

import torch
from architecture_case import Case
from peft import get_peft_model
from zoo import base_model, padded, plant, planted_config, token_ids

from sae_unlearn import detach_guardrail, record_firings
from sae_unlearn.backbone.layers import find_decoder_layers


def plain_forward(it: Case):
    """Rows that fire are edited, and the logits of quiet rows are the base's bit for bit."""
    length = len(it.rows[0])
    ids = torch.cat([it.rows[0][None], token_ids(15, length, seed=3)])
    with torch.no_grad():
        plain = it.base(input_ids=ids).logits
        with record_firings(it.model) as firings:
            guarded = it.model(input_ids=ids).logits
    fired = torch.tensor([firing.fired for firing in firings])
    assert fired.any()
    assert not fired.all()
    assert torch.equal(guarded[~fired], plain[~fired])
    assert (guarded[fired] - plain[fired]).abs().amax(dim=(1, 2)).min() > 1e-3


def taken_off(it: Case):
    """Disabled, unloaded and detached, the model gives the base's logits bit for bit, and keeps no hook of ours."""
    ids = it.rows[0][None]
    plain = it.logits(ids, model=it.base)
    assert not torch.equal(it.logits(ids), plain)
    with it.model.disable_adapter():
        assert torch.equal(it.logits(ids), plain)
    hooks = count_hooks(it.base)
    architecture = it.base.name_or_path.removeprefix("tiny-")
    thawed = it.logits(ids, model=base_model(architecture))
    for take_off in (lambda model: model.unload(), detach_guardrail):
        model = get_peft_model(base_model(architecture), planted_config())
        plant(model)
        bare = take_off(model)
        assert type(bare) is type(it.base)
        assert torch.equal(it.logits(ids, model=bare), thawed)
        assert count_hooks(bare) <= hooks  # transformers puts its own on when hidden states are first asked for
        assert dict(bare.named_parameters()).keys() == dict(it.base.named_parameters()).keys()


def count_hooks(model) -> int:
    with torch.no_grad():
        model(input_ids=token_ids(1, 4), output_hidden_states=True)
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def padding_side(it: Case):
    """Left-padded, right-padded and alone, a row has the same logits at its tokens."""
    right = padded(it.rows, "right")
    from_left = it.logits(it.batch["input_ids"], it.batch["attention_mask"])
    from_right = it.logits(right["input_ids"], right["attention_mask"])
    for i, row in enumerate(it.rows):
        alone = it.logits(row[None])[0]
        torch.testing.assert_close(from_left[i, -len(row) :], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(from_right[i, : len(row)], alone, atol=1e-4, rtol=1e-4)


def hidden_states(it: Case):
    """`hidden_states[layer + 1]` is what the next layer saw, the edit included, even if they were asked for before."""
    plain = copy.deepcopy(it.base)
    with torch.no_grad():  # transformers puts its capturing hooks on now, before the guardrail's
        unedited = plain(**it.batch, output_hidden_states=True).hidden_states[it.layer + 1].clone()
    seen, late = {}, get_peft_model(plain, copy.deepcopy(it.config))
    plant(late)
    for model in (it.model, late):
        following = find_decoder_layers(model.get_base_model()).layers[it.config.layer + 1]
        handle = following.register_forward_pre_hook(
            lambda m, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with torch.no_grad():
            shown = model(**it.batch, output_hidden_states=True).hidden_states[it.layer + 1]
        handle.remove()
        assert torch.equal(shown, seen["x"])
        assert not torch.equal(shown, unedited)


def gradient_checkpointing(it: Case):
    """Training mode with checkpointing gives the gradients of training mode without, at embeddings below the guard."""
    ids = torch.cat([it.rows[0][None], token_ids(3, len(it.rows[0]), seed=6)])
    model, gradients, runs = it.model.get_base_model(), {}, {}
    model.get_input_embeddings().weight.requires_grad_()  # the base is frozen under a guardrail
    inner = [m for m in find_decoder_layers(model).layers[0].modules() if not list(m.children())]
    try:
        model.train()
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            calls = []
            handles = [m.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1)) for m in inner]
            with record_firings(model) as firings:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                (gradients[checkpointing],) = torch.autograd.grad(loss, model.get_input_embeddings().weight)
            for handle in handles:
                handle.remove()
            runs[checkpointing] = len(calls)
            assert len(firings) == 4
            assert firings[0].fired
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    assert runs[True] > 1.5 * runs[False] > 0  # recomputed, up to the last tensor that is needed
    assert gradients[False].abs().max() > 0
    torch.testing.assert_close(gradients[True], gradients[False])
