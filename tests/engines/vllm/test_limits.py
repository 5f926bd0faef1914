"""Engines and models that a guardrail cannot judge: versions, settings, sizes and layers are refused by name."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from fails_closed import stopped
from served import VOCAB
from torch import nn

from sae_unlearn import GuardrailError
from sae_unlearn.engines.vllm import layers, limits, worker
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported


def test_versions_of_vllm():
    with stopped("vLLM 0.32", GuardrailUnsupported, r"vllm=0\.31\.2"):
        limits.check_version("0.31.2", (0, 31, 2))
    with pytest.warns(UserWarning, match=r"vllm=0\.33\.0"):
        limits.check_version("0.33.0", (0, 33, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limits.check_version("0.32.1", (0, 32, 1))


UNSUPPORTED = {
    "--kv-transfer-config": {"kv_transfer_config": object()},
    "--enable-dbo": {"parallel_config.use_ubatching": True},
    "--prefill-context-parallel-size": {"parallel_config.prefill_context_parallel_size": 2},
    "--decode-context-parallel-size": {"parallel_config.decode_context_parallel_size": 2},
    "--enable-prompt-embeds": {"model_config.enable_prompt_embeds": True},
    "--runner pooling": {"model_config.runner_type": "pooling"},
    "--enable-sleep-mode": {"model_config.enable_sleep_mode": True},
    "--kv-sharing-fast-prefill": {"cache_config.kv_sharing_fast_prefill": True},
    "VLLM_USE_V2_MODEL_RUNNER": {"device_config.device_type": "cuda", "use_v2_model_runner": True},
    "CUDA graphs": {"device_config.device_type": "cuda", "compilation_config.cudagraph_mode": "FULL"},
}


@pytest.fixture(scope="module")
def engine_config(tiny):
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(str(tiny / "gemma3"), skip_tokenizer_init=True, max_model_len=256).create_engine_config()


class Changed:
    """A config with other values at dotted names."""

    def __init__(self, config, changes):
        self._config, self._changes = config, changes

    def __getattr__(self, name):
        if name in self._changes:
            return self._changes[name]
        inner = {key.split(".", 1)[1]: value for key, value in self._changes.items() if key.startswith(f"{name}.")}
        found = getattr(self._config, name)
        return Changed(found, inner) if inner else found


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_settings_of_the_engine_are_refused_by_name(engine_config, name):
    limits.check_engine(engine_config)
    with stopped(f"with {name}", GuardrailUnsupported, name):
        limits.check_engine(Changed(engine_config, UNSUPPORTED[name]))


def test_another_width_depth_or_vocabulary(engine_config, tiny):
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    config = GuardrailFolder.open(tiny / "guard").config()
    limits.check_guardrail(config, "guard", engine_config)
    for name, value in (("hidden_size", 65), ("num_hidden_layers", 5), ("vocab_size", 4)):
        with stopped(f"the guardrail's {name}", GuardrailError):
            limits.check_guardrail(
                config, "guard", Changed(engine_config, {f"model_config.hf_text_config.{name}": value})
            )


def test_model_classes_whose_layers_are_not_known():
    class Triple(nn.Module):
        def forward(self, x):
            return x, x, x

    model = nn.Module()
    with stopped("a list of decoder layers", GuardrailUnsupported, "expected one list of 4 decoder layers"):
        layers.find_layers(model, 4)
    model.layers = nn.ModuleList([Triple() for _ in range(4)])
    assert layers.find_layers(model, 4) is model.layers
    layers.guard_layer(model.layers[0], 0)
    with stopped("the form of what a layer returns", GuardrailUnsupported, "Triple"):
        model.layers[0](torch.zeros(1))


def test_a_model_without_attention():
    group = SimpleNamespace(kv_cache_spec=object())
    with stopped("attention", GuardrailUnsupported, "no attention layer"):
        worker.attention_group(SimpleNamespace(kv_cache_groups=[group]))


def test_refusal_that_the_model_cannot_say(engine_config, tiny):
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    config = GuardrailFolder.open(tiny / "guard").config()
    config.refusal_ids, config.action = [VOCAB + 3], "refuse"
    with stopped("a token of the refusal in the vocabulary", GuardrailNotReady, str(VOCAB + 3)):
        limits.check_guardrail(config, "guard", engine_config)
