"""Requests of an engine are found by the id of their answer: all of its parts, and none of another answer."""

import pytest

from sae_unlearn.engines.request_ids import transformers_requests, vllm_requests


BEAM = "cmpl-e-0-" + "0a" * 8 + "-beam-3"
NAMES = [
    "cmpl-a-0-0123abcd",  # two prompts
    "cmpl-a-1-0123abcd",
    "0_cmpl-b-0-0123abcd",  # two samples
    "1_cmpl-b-0-0123abcd",
    "cmpl-a-0-0-0123abcd",  # of the answer cmpl-a-0
    "chatcmpl-r-0123abcd",
    "chatcmpl-r_1-0123abcd",
    "chatcmpl-batch_0-0123abcd",
    "chatcmpl-batch_1-0123abcd",
    "resp_c_0-0123abcd",  # turns
    "resp_c_1-0123abcd",
    f"{BEAM}-0123abcd",
    "1-0123abcd",
    "10-0123abcd",
    "cmpl-plain-0",  # with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION
]


@pytest.mark.parametrize(
    ("request_id", "places"),
    [
        ("cmpl-a", [0, 1]),
        ("cmpl-a-0", [4]),
        ("cmpl-b", [2, 3]),
        ("cmpl-b-0", [2, 3]),  # `gen_ai.request.id` of a span
        ("chatcmpl-r", [5]),
        ("chatcmpl-r_1", [6]),
        ("chatcmpl-batch", [7, 8]),
        ("resp_c", [9, 10]),
        ("cmpl-e", [11]),
        ("1", [12]),
        ("10", [13]),
        ("cmpl-plain", [14]),
        ("1_cmpl-b-0-0123abcd", [3]),
        *((wrong, []) for wrong in ("cmpl", "cmpl-", "c", "chatcmpl", "chatcmpl-", "resp", "0", "b", "cmpl-a-0-0123")),
    ],
)
def test_ids_of_vllm(request_id, places):
    assert vllm_requests(NAMES, request_id) == [NAMES[place] for place in places]


def test_ids_of_transformers():
    names = ["req_1", "req_10", "req_1__child#0", "req_1__child#10", "req_1__childish", "req_11"]
    assert transformers_requests(names, "req_1") == ["req_1", "req_1__child#0", "req_1__child#10"]
    assert transformers_requests(names, "resp_req_10") == ["req_10"]
    assert transformers_requests(names, "req_") == transformers_requests(names, "resp_") == []
