"""A thousand requests that come, end and are aborted at random: each record is as if alone, and memory is flat."""

import gc
import json
import os
import random
from pathlib import Path

import torch
from served import FIELDS, VOCAB, expected, prompts, serving
from transformers import AutoModelForCausalLM

from sae_unlearn import attach_guardrail, record_firings


RESULTS = "SAE_UNLEARN_SOAK"
"""Environment variable with a file for what was measured."""
SPECIAL = {0, 1, VOCAB - 1}
TOKENS = 12
COUNT = 1000
GROWTH = 32 * 2**20
"""Bytes that the process may grow by in the second half of the requests."""


class Alone:
    """What is recorded of the beginnings of a request that is alone, by transformers."""

    def __init__(self, folder, rows):
        answers = expected(folder / "gemma3", [folder / "guard"], rows, tokens=TOKENS)
        self.whole = [[*row, *tokens] for row, (tokens, _) in zip(rows, answers, strict=True)]
        self.fires = [records["guard"][0] for _, records in answers]
        model = AutoModelForCausalLM.from_pretrained(folder / "gemma3").eval()
        self._model = attach_guardrail(model, folder / "guard", adapter_name="guard")
        self._known = {}

    def record(self, row, tokens):
        """`FIELDS` after the first `tokens` tokens that are not special."""
        counted = [place for place, token in enumerate(self.whole[row], 1) if token not in SPECIAL]
        length = counted[tokens - 1]
        if (row, length) not in self._known:
            ids = torch.tensor([self.whole[row][:length]])
            with torch.inference_mode(), record_firings(self._model) as firings:
                self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
            self._known[row, length] = tuple(getattr(firings[0], field) for field in FIELDS)
        return self._known[row, length]


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensors():
    """Tensors that are alive in this process."""
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def run(engine, alone, rows, count, seed=0):
    """Send `count` requests; return the row of each by its id, the aborted ones, and the memory on the way.

    The last is, after each pass, the number of requests and the bytes, and the number of tensors after each quarter.
    """
    from vllm import SamplingParams

    draw, llm = random.Random(seed), engine.llm.llm_engine
    sides = [[row for row, fires in enumerate(alone.fires) if fires == side] for side in (False, True)]
    sent, live, aborted, memory, alive = {}, [], set(), [], []
    while len(sent) < count or live:
        while len(sent) < count and len(live) < 12 and draw.random() < 0.7:
            name, row = f"soak{len(sent)}x", draw.choice(draw.choice(sides))
            params = SamplingParams(temperature=0, max_tokens=draw.randint(1, TOKENS), detokenize=False)
            llm.add_request(name, {"prompt_token_ids": rows[row]}, params)
            sent[name] = row
            live.append(name)
        if live and draw.random() < 0.15:
            name = live.pop(draw.randrange(len(live)))
            llm.abort_request([name])
            aborted.add(name)
        ended = {output.request_id for output in llm.step() if output.finished}
        live = [name for name in live if name not in ended]
        memory.append((len(sent), resident()))
        if len(sent) >= count * (len(alive) + 1) // 4:
            alive.append(tensors())
    return sent, aborted, memory, alive


def test_a_thousand_requests_at_random(tiny):
    rows = prompts(16, seed=11, longest=110)
    alone = Alone(tiny, rows)
    assert {True, False} == set(alone.fires)
    with serving(tiny / "gemma3", [tiny / "guard"], max_num_batched_tokens=64) as engine:
        sent, aborted, memory, alive = run(engine, alone, rows, COUNT)
        records = engine.guards.records
        found = records.take()
        assert not engine.guards.running
        assert len(records._running) <= 1  # the last request ends with the next pass
    seen = 0
    for name, by in found.items():
        row = sent[name.partition("-")[0]]
        record = by["guard"]
        if record["tokens"]:
            assert tuple(record[field] for field in FIELDS) == alone.record(row, record["tokens"]), name
            seen += 1
    assert COUNT / 20 < len(aborted) < COUNT / 2
    assert seen >= COUNT - len(aborted)  # some were aborted before their first pass
    at = {tenth: max(size for number, size in memory if number <= COUNT * tenth // 10) for tenth in range(1, 11)}
    curve = [round((size - at[1]) / 2**20, 1) for size in at.values()]
    assert at[10] - at[5] < GROWTH, curve
    assert len(alive) >= 4
    assert max(alive[1:]) - min(alive[1:]) < COUNT // 10, alive  # none is kept for each request
    found = {"requests": COUNT, "aborted": len(aborted), "records": seen, "mib_by_tenth": curve}
    print(found)
    if RESULTS in os.environ:
        Path(os.environ[RESULTS]).write_text(json.dumps(found) + "\n")
