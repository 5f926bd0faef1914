"""`generate_batch` gives no answer where a guardrail did not see the tokens, and names the settings it refuses."""

import time
from types import SimpleNamespace

import pytest
from continuous import answers, load, manager_of
from peft.tuners.tuners_utils import BaseTunerLayer
from served import expected, prompts, save_guardrail, save_model
from transformers.generation.configuration_utils import CompileConfig, ContinuousBatchingConfig

from sae_unlearn import attach_guardrail, enable_guardrails
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.backbone.paged_cache import PagedLayout
from sae_unlearn.backbone.private_api import remove_hooks
from sae_unlearn.errors import GuardrailUnsupported
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.runtime.continuous_batching import _check_settings
from sae_unlearn.guardrail.runtime.hooks import BackboneHooks


ROWS = prompts(4, longest=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    save_guardrail(folder, save_model(folder, "llama"), "guard")
    return folder


def guarded(folder):
    return load(folder / "llama", [folder / "guard"])


def of_layer(model):
    (layer,) = guard_layers(model)
    remove_hooks(layer.home, SAEGuardrailLayer)


def of_backbone(model):
    bare = model.get_base_model()
    remove_hooks(find_decoder_layers(bare).backbone, BackboneHooks)


def of_both(model):
    of_layer(model), of_backbone(model)


@pytest.mark.parametrize(
    ("take", "message"), [(of_layer, "Layer 1"), (of_backbone, "outside of its model"), (of_both, "notes of a pass")]
)
def test_without_its_hooks_nothing_is_answered(tiny, take, message):
    model = guarded(tiny)
    take(model)
    for error in answers(model, ROWS, fails=True):
        assert message in error


def test_a_prefix_that_was_computed_before_the_guardrail_is_not_used(tiny):
    bare = load(tiny / "llama", [])
    answers(bare, ROWS, record=False, kept=True)
    model = attach_guardrail(bare, tiny / "guard", adapter_name="guard")
    errors = answers(model, ROWS, fails=True, kept=True)
    assert all("'guard' has not seen" in error for error in errors)


def enabled_at(model, number, names):
    """Enable guardrails at the beginning of a call of the model, counted from now on."""
    calls = []

    def before(module, args, kwargs):
        calls.append(1)
        if len(calls) == number:
            enable_guardrails(model, names)

    model.get_base_model().register_forward_pre_hook(before, with_kwargs=True, prepend=True)


def error_of(manager):
    """The error by which a request ends that would otherwise take long."""
    while (result := manager.get_result(timeout=60)).error is None:
        assert not result.is_finished()
    return result.error


def test_requests_that_began_while_the_guardrail_was_disabled_are_not_continued(tiny):
    model = guarded(tiny)
    enable_guardrails(model, [])
    enabled_at(model, 4, ["guard"])
    with manager_of(model) as manager:
        manager.add_request(ROWS[-1], max_new_tokens=400, streaming=True)
        assert "'guard' has not seen" in error_of(manager)


def test_enabled_by_another_thread_it_is_not_skipped(tiny):
    """Whenever within a pass, the request ends with an error."""
    model = guarded(tiny)
    enable_guardrails(model, [])
    model.get_base_model().register_forward_pre_hook(lambda *_: time.sleep(0.01))  # not at its end before we are there
    with manager_of(model) as manager:
        request = manager.add_request(ROWS[-1], max_new_tokens=400, streaming=True)
        assert manager.get_result(timeout=60).request_id == request
        enable_guardrails(model, ["guard"])
        assert "guard" in error_of(manager)


def test_what_a_slot_held_before_is_not_taken_for_the_present_row(tiny):
    """The table still has the states of an earlier request at the slots of one that began while it was disabled."""
    model = guarded(tiny)
    with manager_of(model, allow_block_sharing=False, num_blocks=30) as manager:
        for _ in range(2):
            manager.add_request(ROWS[-1], max_new_tokens=30)
            assert manager.get_result(timeout=60).error is None
        enable_guardrails(model, [])
        enabled_at(model, 4, ["guard"])
        manager.add_request(ROWS[-1], max_new_tokens=400, streaming=True)
        assert "'guard' has not seen" in error_of(manager)


def test_disabled_and_enabled_between_requests_it_guards_again(tiny):
    model = guarded(tiny)
    wanted = [tokens for tokens, _ in expected(tiny / "llama", [tiny / "guard"], ROWS)]
    assert [t for t, _ in answers(model, ROWS)] == wanted
    enable_guardrails(model, [])
    bare = [tokens for tokens, _ in expected(tiny / "llama", [], ROWS)]
    assert [t for t, _ in answers(model, ROWS, record=False)] == bare
    enable_guardrails(model, ["guard"])
    assert [t for t, _ in answers(model, ROWS)] == wanted


def test_a_gate_that_counts_columns_is_refused(tiny):
    guard = save_guardrail(tiny, tiny / "llama", "columns", counting="columns")
    for error in answers(load(tiny / "llama", [guard]), ROWS, fails=True):
        assert "counting='columns'" in error


def test_a_setting_that_is_refused_stops_the_generation(tiny):
    for error in answers(guarded(tiny), ROWS, fails=True, warmup=False, varlen_compile_config=CompileConfig()):
        assert error.startswith("varlen_compile_config=")


COMPLETE = {"use_cuda_graph": (False, False), "use_async_batching": False}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_cuda_graph", True),
        ("use_cuda_graph", (False, True)),
        ("varlen_compile_config", {}),
        ("decode_compile_config", {}),
        ("use_async_batching", True),
        ("cpu_offload_space", None),
        ("cpu_offload_space", 1.0),
    ],
)
def test_settings_are_refused_by_name(name, value):
    _check_settings(ContinuousBatchingConfig(**COMPLETE))
    with pytest.raises(GuardrailUnsupported, match=name):
        _check_settings(ContinuousBatchingConfig(**(COMPLETE | {name: value})))


def test_a_cache_of_an_unknown_kind_is_refused():
    with pytest.raises(GuardrailUnsupported, match="generate_batch"):
        PagedLayout.of(SimpleNamespace())


def test_a_paged_cache_outside_of_a_step_is_refused(tiny):
    model, seen = guarded(tiny), []
    backbone = find_decoder_layers(model.get_base_model()).backbone
    handle = backbone.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    answers(model, ROWS[:1])
    handle.remove()
    with pytest.raises(GuardrailUnsupported, match="use_cuda_graph"):
        backbone(**seen[0])


def test_no_layer_keeps_what_it_was_given(tiny):
    model = guarded(tiny)
    answers(model, ROWS)
    for layer in guard_layers(model):
        assert isinstance(layer, BaseTunerLayer)
        assert not [name for name, value in vars(layer).items() if "paged" in name or "table" in type(value).__name__]
