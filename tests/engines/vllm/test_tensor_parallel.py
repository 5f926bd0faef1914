"""Two workers, each with half of every matrix, in processes of their own."""

import pytest
from served import FIELDS, PARAMS, Engine, expected, prompts

from sae_unlearn.engines.request_ids import vllm_requests


pytestmark = pytest.mark.slow
ROWS = prompts(8)


def test_two_workers_have_the_same_records(tiny):
    from vllm import SamplingParams

    engine = Engine(tiny / "gemma3", [tiny / "guard"], tensor_parallel_size=2, max_num_batched_tokens=64)
    try:
        inputs = [{"prompt_token_ids": row} for row in ROWS]
        outputs = engine.llm.generate(inputs, SamplingParams(**PARAMS), use_tqdm=False)
        ranks = engine.llm.collective_rpc("sae_guardrail_records")
    finally:
        engine.close()
    assert len(ranks) == 2
    wanted = expected(tiny / "gemma3", [tiny / "guard"], ROWS)
    assert {records["guard"][0] for _, records in wanted} == {True, False}
    for output, (tokens, records) in zip(outputs, wanted, strict=True):
        assert list(output.outputs[0].token_ids) == tokens
        for rank in ranks:
            (own,) = [rank[name]["guard"] for name in vllm_requests(rank, output.request_id)]
            assert tuple(own[field] for field in FIELDS) == records["guard"]
