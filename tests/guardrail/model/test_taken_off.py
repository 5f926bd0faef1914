"""A guarded model that is offloaded, wrapped or taken apart guards or raises, and the status says which."""

import os
import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from guarded_calls import assert_guarded, assert_raises, logits, whole
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from zoo import LAYERS, base_model, guarded, plant, planted_config

from sae_unlearn import guardrail_status


# --------------------------------------------------------------------------------------------------- offloaded, wrapped


def offloaded_to_cpu(model, folder):
    cpu_offload(whole(model), execution_device="cpu")


def offloaded_to_disk(model, folder):
    disk_offload(whole(model), folder, execution_device="cpu")


def dispatched(model, folder):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(LAYERS)}
    dispatch_model(whole(model), places | layers, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("offload", [offloaded_to_cpu, offloaded_to_disk, dispatched])
def test_offloaded_it_is_guarded_or_raises(offload, expected, tmp_path):
    model = guarded("llama")
    offload(model, tmp_path)
    verdict = guardrail_status(model).verdict
    try:
        found = logits(model)
    except Exception:
        assert verdict in ("guarded", "raises")
        return
    assert verdict == "guarded"
    torch.testing.assert_close(found, expected[0])


@pytest.fixture
def process_group(tmp_path):
    os.environ |= {"MASTER_ADDR": "localhost"}
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_in_distributed_data_parallel_it_is_guarded(expected):
    model = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM", r=2))  # DDP wants something to train
    from sae_unlearn.guardrail.model import SAEGuardrailModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAEGuardrailModel(model.get_base_model(), planted_config(), "guard")
    plant(model, "guard")
    assert_guarded(nn.parallel.DistributedDataParallel(model.eval()), expected)


@pytest.mark.usefixtures("process_group")
def test_in_fully_sharded_data_parallel_it_is_guarded(expected):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = guarded("llama")
    mesh = init_device_mesh("cpu", (1,))
    for layer in whole(model).model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_guarded(model, expected)


# ------------------------------------------------------------------------------------------------ taken off by the back


def hooks_cleared_on_the_layer(model):
    whole(model).model.layers[1]._forward_hooks.clear()


def hooks_cleared_everywhere(model):
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def hooks_cleared_on_the_backbone(model):
    whole(model).model._forward_pre_hooks.clear()


def layer_replaced(model):
    whole(model).model.layers[1] = base_model("llama").model.layers[1]


def layers_replaced(model):
    whole(model).model.layers = base_model("llama").model.layers


def layer_cut_off(model):
    whole(model).model.layers = whole(model).model.layers[:1]


def layers_not_run(model):
    """transformers runs as many as its config says."""
    whole(model).config.num_hidden_layers = 1


def child_removed(model):
    del whole(model).model.layers[1].guardrail
    hooks_cleared_on_the_layer(model)


TAKEN_OFF = [hooks_cleared_on_the_layer, hooks_cleared_on_the_backbone, layer_replaced, layers_replaced, layer_cut_off,
             layers_not_run, child_removed]  # fmt: skip


@pytest.mark.parametrize("take_off", TAKEN_OFF)
def test_taken_off_by_other_means_the_call_raises(take_off):
    model = guarded("llama")
    take_off(model)
    assert_raises(model, "was replaced|outside of its model")


def test_with_every_hook_of_the_model_gone_the_status_says_so():
    """Nothing is left that could stop the call; what is left of the guardrail is its weights, and they tell."""
    model = guarded("llama")
    hooks_cleared_everywhere(model)
    assert guardrail_status(model).verdict != "guarded"


def test_a_layer_that_is_wrapped_in_place_stays_guarded(expected):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model = guarded("llama")
    whole(model).model.layers[1] = Wrapper(whole(model).model.layers[1])
    assert_guarded(model, expected)
