"""Speculative decoding: tokens and records are those of `generate()`, by n-grams and by a draft model.

In processes of their own: vLLM 0.32 on a CPU starts no other engine in a process after one that drafts.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from served import expected, prompts, save_guardrail, serving


METHODS = {
    "ngram": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1},
    "draft_model": {"method": "draft_model", "num_speculative_tokens": 3},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("action", ["clamp", "refuse"])
def test_drafts(tiny, method, action):
    save_guardrail(tiny, tiny / "gemma3", "refuse", action="refuse", refusal_ids=[201, 202, 203, 204, 511])
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        drafted, accepted = process.submit(check, tiny, method, {"clamp": "guard"}.get(action, action)).result(200)
    assert drafted > 0
    assert accepted > 0 or method == "ngram"


def check(folder, method, guard):
    """Compare all rows, for answers that end inside of what was drafted, too, and return the numbers of drafts."""
    rows = [row * 2 for row in prompts(6, longest=60)]  # repeated, so that n-grams are found
    config = METHODS[method] | ({"model": str(folder / "gemma3")} if method == "draft_model" else {})
    counts = [0, 0]
    with serving(folder / "gemma3", [folder / guard], speculative_config=config, max_num_batched_tokens=64) as engine:
        take = engine.core.scheduler.update_from_output

        def counted(scheduled, output):
            for request, ids in scheduled.scheduled_spec_decode_tokens.items():
                counts[0] += len(ids)
                counts[1] += len(output.sampled_token_ids[output.req_id_to_index[request]]) - 1
            return take(scheduled, output)

        engine.core.scheduler.update_from_output = counted
        for tokens in (5, 6, 7):
            found, _ = engine.answers(rows, max_tokens=tokens)
            wanted = expected(folder / "gemma3", [folder / guard], rows, tokens=tokens)
            for row, (one, other) in enumerate(zip(found, wanted, strict=True)):
                assert one == other, (method, guard, tokens, row)
    return counts
