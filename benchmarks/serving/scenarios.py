"""What a vLLM engine is made to do with its rows, for `equality`."""

from dataclasses import dataclass, field
from typing import Any


CHUNKS = {"max_num_batched_tokens": 64}
WHOLE = {"enable_prefix_caching": False, "enable_chunked_prefill": False}


@dataclass(frozen=True)
class Scenario:
    """One engine and what it is asked.

    Attributes:
        adapter: folder of the guardrail, `none` for the bare model.
        what: for the table.
        engine: options of `vllm.LLM`.
        sampling: options of `vllm.SamplingParams`.
        repeat: how many times all prompts are sent.
        lora: whether requests come with a LoRA adapter whose product is 0.
        untested: allow what was never run: graphs and the second model runner, which need a GPU.
    """

    adapter: str
    what: str
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    repeat: int = 1
    lora: bool = False
    untested: bool = False


SCENARIOS = {
    "bare": Scenario("none", "no guardrail"),
    "prefix": Scenario("prefix", "prompts in pieces of 64 tokens; all prompts again, from the cache", CHUNKS, repeat=2),
    "preempted": Scenario(
        "prefix",
        "112 blocks of 32 tokens: requests preempted",
        {"block_size": 32, "num_gpu_blocks_override": 112, "max_model_len": 512},
    ),
    "sequence": Scenario("sequence", "whole prompts", WHOLE),
    "refuse": Scenario("refuse", 'action="refuse", pieces of 128 tokens', {"max_num_batched_tokens": 128}),
    "record": Scenario("record", 'action="record"', {"max_num_batched_tokens": 256}),
    "samples": Scenario("prefix", "two samples of each prompt", CHUNKS, {"n": 2, "temperature": 1, "top_k": 1}),
    "transformers": Scenario("prefix", "--model-impl transformers", {"model_impl": "transformers"}),
    "tensor_parallel": Scenario("prefix", "tensor parallel 2, workers in processes", {"tensor_parallel_size": 2}),
    "compiled": Scenario("prefix", "enforce_eager off, on a CPU", {"enforce_eager": False}),
    "lora": Scenario("prefix", "a LoRA adapter of vLLM beside it", {"enable_lora": True}, lora=True),
    "drafts": Scenario(
        "prefix",
        "drafts by n-gram, 3 at a time",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}},
    ),
}
"""By name. `drafts` comes last: vLLM 0.32 on a CPU starts no second engine in a process after it."""

ON_A_GPU = {
    "graphs": Scenario("prefix", "piecewise CUDA graphs", {"enforce_eager": False}, untested=True),
    "second_runner": Scenario("prefix", "the second model runner, pieces of 64 tokens", CHUNKS, untested=True),
    "second_runner_graphs": Scenario(
        "prefix", "the second model runner with graphs", {"enforce_eager": False}, untested=True
    ),
}
"""Those that `benchmarks/on_a_gpu.sh` adds; the second runner also needs VLLM_USE_V2_MODEL_RUNNER=1."""
