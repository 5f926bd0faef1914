"""What stops a guarded engine: each test takes a part away and reads what is said."""

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from fails_closed import stopped
from served import Engine, expected, prompts, save_guardrail, save_model, serving

from sae_unlearn import GuardrailError
from sae_unlearn.engines.probe_check import NO_PROBE
from sae_unlearn.engines.vllm import plugin, selfcheck
from sae_unlearn.engines.vllm.settings import Settings
from sae_unlearn.errors import GuardrailNotReady, GuardrailUnsupported


ROWS = prompts(4, longest=150)
EXTENSION = plugin.EXTENSION


def refused(part, match, *args, **options):
    """Start an engine that must not start."""
    with stopped(part, match=match):
        Engine(*args, **options).close()
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


# ------------------------------------------------------------------------------------------------ it does not start


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--no-enable-prefix-caching", {"enable_chunked_prefill": False}),
        ("--no-enable-chunked-prefill", {"enable_prefix_caching": False, "max_num_batched_tokens": 64}),
    ],
)
def test_sequence_scope_needs_whole_prompts(tiny, flags, options):
    guard = save_guardrail(tiny, tiny / "gemma3", "whole", gate_scope="sequence")
    refused(f'gate_scope="sequence" without {flags}', flags, tiny / "gemma3", [guard], **options)


def test_a_damaged_folder(tiny):
    guard = save_guardrail(tiny, tiny / "gemma3", "damaged")
    stored = guard / "adapter_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"weights_sha256": "0" * 64}))
    refused("weights that were changed after saving", "after it was saved", tiny / "gemma3", [guard])


def test_a_folder_that_is_not_there(tiny):
    refused("the folder", "nowhere", tiny / "gemma3", [tiny / "nowhere"])


def test_the_guardrail_of_another_model(tiny):
    refused("the model it was fitted on", "fitted on another model", save_model(tiny, "llama"), [tiny / "guard"])


def test_a_worker_without_the_plugin(tiny, monkeypatch):
    """The patch of the workers is taken back, as where a worker's process does not load the plugin."""
    from vllm.v1.worker.worker_base import WorkerBase

    monkeypatch.setattr(WorkerBase, "__init__", WorkerBase.__init__.__wrapped__)
    refused("the plugin in a worker", "expected the plugin in every worker", tiny / "gemma3", [tiny / "guard"])


def test_the_extension_without_the_package(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_unlearn.engines.vllm.extension", None)
    refused(
        "the package, with --worker-extension-cls",
        "extension",
        tiny / "gemma3",
        [tiny / "guard"],
        worker_extension_cls=EXTENSION,
    )


def test_the_extension_without_guardrails(tiny):
    refused(
        "the settings, with --worker-extension-cls",
        "expected guardrails in --additional-config",
        tiny / "gemma3",
        worker_extension_cls=EXTENSION,
    )


def test_the_extension_serves(tiny):
    with serving(tiny / "gemma3", [tiny / "guard"], worker_extension_cls=EXTENSION) as engine:
        found, _ = engine.answers(ROWS)
        assert all(records for _, records in found)


def test_settings_that_say_nothing_or_too_much(tiny):
    for settings in (
        {"paths": []},
        {"paths": "one"},
        {"paths": ["a/x", "b/x"]},
        {"path": ["a"]},
        {"paths": ["a"], "log": 3},
    ):
        with pytest.raises(GuardrailError, match="sae_guardrail"):
            Settings.of(SimpleNamespace(additional_config={"sae_guardrail": settings}))


def test_the_key_of_compiled_code_says_which_guardrail_it_holds(tiny):
    with serving(tiny / "gemma3", [tiny / "guard"]) as engine:
        config = engine.guards.vllm_config
        placed = config.additional_config["sae_guardrail_placed"]
        guarded = config.compute_hash()
        config.additional_config = {k: v for k, v in config.additional_config.items() if k != "sae_guardrail_placed"}
        assert config.compute_hash() != guarded
        config.additional_config["sae_guardrail_placed"] = [[placed[0][0], "another"]]
        assert config.compute_hash() != guarded


# -------------------------------------------------------------------------------------------------------- it stops


def test_a_layer_that_does_not_call_the_guardrail(tiny):
    """As where compiled code of the bare model is loaded from a cache."""
    with serving(tiny / "gemma3", [tiny / "guard"]) as engine:
        layer = engine.guards.worker.model_runner.get_model().model.layers[1]
        layer.__class__ = type(layer).__mro__[1]
        with stopped("the operator in the layer's code", GuardrailNotReady, "guardrail at layer 1 saw 0", "pass"):
            engine.answers(ROWS)


def test_cached_blocks_that_the_guardrail_has_not_seen(tiny):
    with serving(tiny / "gemma3", [tiny / "guard"]) as engine:
        engine.answers(ROWS)
        engine.guards.guards[0].table.clear()
        with stopped("the states of cached blocks", GuardrailNotReady, "guardrail guard has not seen", "pass"):
            engine.answers(ROWS)


def test_tokens_that_went_by_unseen_make_the_row_fire(tiny):
    quiet = save_guardrail(tiny, tiny / "gemma3", "quiet", threshold=0.99)
    with serving(tiny / "gemma3", [quiet]) as engine:
        (_, before), *_ = engine.answers(ROWS[-1:])[0]
        assert not before["quiet"][0]
        llm = engine.llm.llm_engine
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=8, detokenize=False)
        llm.add_request("lost", {"prompt_token_ids": ROWS[0]}, params)
        llm.step()
        engine.guards.guards[0].table.clear()
        while llm.has_unfinished_requests():
            llm.step()
        (record,) = [by["quiet"] for name, by in engine.records().items() if name.startswith("lost")]
        assert record["fired"]
        assert not record["finite"]


def test_a_prompt_in_pieces_under_sequence_scope():
    from sae_unlearn.engines.vllm.passes import Pass

    cut = Pass.__new__(Pass)
    for computed, length, prompt, whole in ((0, 8, 8, True), (8, 1, 8, True), (0, 4, 8, False), (4, 4, 8, False)):
        cut.computed, cut.lengths, cut.prompts = (torch.tensor([x]).numpy() for x in (computed, length, prompt))
        if whole:
            cut.check_whole_prompts()
        else:
            with stopped("a part of a prompt", GuardrailUnsupported, "--no-enable-chunked-prefill", "pass"):
                cut.check_whole_prompts()


class Local:
    """The part of vLLM's asynchronous client that the check before serving uses, of an engine in this process."""

    def __init__(self, engine):
        self._llm, self.vllm_config = engine.llm, engine.guards.vllm_config

    async def generate(self, prompt, params, request_id):
        engine = self._llm.llm_engine
        engine.add_request(request_id, prompt, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                yield output

    async def collective_rpc(self, method, args=()):
        return self._llm.collective_rpc(method, args=args)


def self_check(engine, paths):
    """What the check before serving says of the guardrails."""
    return asyncio.run(selfcheck.check_engine_client(Local(engine), Settings([str(path) for path in paths])))


def test_a_server_that_does_not_do_what_the_fit_did_does_not_listen(tiny):
    rows = prompts(4, seed=9, longest=60)
    fired = [records["guard"][0] for _, records in expected(tiny / "gemma3", [tiny / "guard"], rows, tokens=1)]
    honest, wrong = (
        {"probe": {"forget": rows}, "probe_statistics": {"forget": [float(f == x) for f in fired]}} for x in (1, 0)
    )
    probed = save_guardrail(tiny, tiny / "gemma3", "probed", calibration=honest)
    false = save_guardrail(tiny, tiny / "gemma3", "false", calibration=wrong)
    with serving(tiny / "gemma3", [probed, false, tiny / "guard"]) as engine:
        (said,) = self_check(engine, [probed])
        assert f"{sum(fired)} of 4 stored rows on the topic" in said
        assert self_check(engine, [tiny / "guard"]) == [NO_PROBE]
        with stopped(
            "the model's weights as at the fit, by the stored rows", GuardrailError, "computes something else"
        ):
            self_check(engine, [false])
        engine.guards.worker.sae_guardrail_find = lambda request: {}
        with stopped("records of the requests of the check", GuardrailError, "is not guarded"):
            self_check(engine, [probed])


# ------------------------------------------------------------------------------------------ a request is refused


def test_requests_that_cannot_be_judged(tiny):
    from vllm.exceptions import VLLMValidationError

    with serving(tiny / "gemma3", [tiny / "guard"]) as engine:
        for extra, match in (({"sae_guardrail": "other"}, "'other'"), ({"sae_guardrail": ""}, "per_request")):
            with stopped(f"a request with {extra}", VLLMValidationError, match, "request"):
                engine.answers(ROWS, extra=extra)
        assert all(records for _, records in engine.answers(ROWS)[0])
    plain = dict.fromkeys(("prompt_embeds", "pooling_params", "resumable", "mm_features", "sampling_params"))
    for name, value, match in (
        ("prompt_embeds", torch.zeros(1), "prompt_embeds"),
        ("pooling_params", object(), "pooling"),
        ("resumable", True, "resumable"),
        ("mm_features", [object()], "images, sound or video"),
    ):
        with stopped(f"a request with {name}", GuardrailError, match, "request"):
            plugin.check_request(SimpleNamespace(**plain | {name: value}), Settings(["guard"]))


def test_logprobs_of_a_prompt_would_say_what_a_refusal_does_not(tiny):
    """vLLM computes them from the hidden states, apart from the logits that a refusal is written into."""
    from vllm.exceptions import VLLMValidationError

    refuse = save_guardrail(tiny, tiny / "gemma3", "refuse", action="refuse", refusal_ids=[201, 202, 203, 204, 511])
    with serving(tiny / "gemma3", [tiny / "guard", refuse], {"per_request": True}) as engine:
        with stopped("a refusal in prompt_logprobs", VLLMValidationError, "refuse refuses", "request"):
            engine.answers(ROWS, prompt_logprobs=3)
        _, outputs = engine.answers(ROWS, {"sae_guardrail": "guard"}, prompt_logprobs=3)  # of the edited stream
    assert all(len(output.prompt_logprobs) == len(row) for output, row in zip(outputs, ROWS, strict=True))
