"""Both model runners of vLLM, by stand-ins with the buffers that are read, describe the same pass in the same way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.speed.kernel_count import kernels
from sae_unlearn.backbone.identity import embedding_samples
from sae_unlearn.engines.vllm.base import difference
from sae_unlearn.engines.vllm.guard import apply_edits
from sae_unlearn.engines.vllm.running import RunningPass
from sae_unlearn.engines.vllm.step_v1 import FirstRunner
from sae_unlearn.engines.vllm.step_v2 import SecondRunner
from sae_unlearn.guardrail.gate.decision import Decision
from sae_unlearn.guardrail.gate.packed_step import Judged
from sae_unlearn.guardrail.gate.slot_table import BEGINNING


BLOCK, PADDED = 4, 3  # tokens of a block; tokens of padding at the end of the buffers
REQUESTS = ["new", "going on", "decoding"]
COMPUTED, LENGTHS, PROMPTS = [0, 4, 9], [5, 3, 1], [5, 12, 6]
BOUNDS = np.concatenate([[0], np.cumsum(LENGTHS)])
BLOCKS = torch.tensor([[7, 2, 0], [5, 9, 0], [1, 8, 3]], dtype=torch.int32)


def buffers():
    """Ids, positions and slots of the tokens, with padding."""
    positions = torch.cat([torch.arange(c, c + n) for c, n in zip(COMPUTED, LENGTHS, strict=True)])
    row = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))
    slots = BLOCKS[row, positions // BLOCK] * BLOCK + positions % BLOCK
    ids = torch.arange(len(positions), dtype=torch.int32) + 20
    junk = torch.full((PADDED,), -1)
    return torch.cat([ids, junk.int()]), torch.cat([positions, junk]), torch.cat([slots.long(), junk])


def first(asynchronous=False):
    ids, positions, slots = buffers()
    table = SimpleNamespace(
        block_size=BLOCK,
        get_device_tensor=lambda count: BLOCKS[:count],
        get_numpy_array=lambda: BLOCKS.numpy(),
        slot_mapping=SimpleNamespace(gpu=slots),
    )
    optimistic = [c + 2 * asynchronous for c in COMPUTED]  # counts drafts that were rejected
    batch = SimpleNamespace(
        num_reqs=3,
        req_ids=[*REQUESTS, None],
        block_table=[table],
        num_computed_tokens_cpu=np.array([*optimistic, 0], dtype=np.int32),
        num_prompt_tokens=np.array([*PROMPTS, 0]),
    )
    runner = SimpleNamespace(
        input_batch=batch,
        _prepare_inputs=lambda: (torch.tensor([4, 8]), None),
        query_start_loc=SimpleNamespace(np=BOUNDS.astype(np.int32)),
        input_ids=SimpleNamespace(gpu=ids),
        positions=positions,
        use_async_spec_decode=asynchronous,
        num_computed_tokens=torch.tensor([*COMPUTED, 0], dtype=torch.int32),
    )
    read = FirstRunner(runner)
    read.begin(None)
    runner._prepare_inputs()
    return read


def second():
    ids, positions, slots = buffers()
    lengths = torch.tensor(COMPUTED) + torch.tensor(LENGTHS)
    batch = SimpleNamespace(
        num_reqs=3,
        num_tokens=int(BOUNDS[-1]),
        req_ids=REQUESTS,
        query_start_loc=torch.tensor(BOUNDS, dtype=torch.int32),
        query_start_loc_np=BOUNDS.astype(np.int32),
        seq_lens=lengths.int(),
        num_computed_tokens_np=np.array(COMPUTED, dtype=np.int32),
        idx_mapping_np=np.array([2, 0, 1]),
        input_ids=ids,
        positions=positions,
        logits_indices=torch.tensor([4, 8]),
    )
    prompts = np.array(PROMPTS)[[1, 2, 0]]
    runner = SimpleNamespace(
        prepare_inputs=lambda: batch,
        prepare_attn=lambda given: ((BLOCKS,), slots[None]),
        sample=lambda: read.sampling,
        block_tables=SimpleNamespace(block_sizes=[BLOCK]),
        req_states=SimpleNamespace(prompt_len=SimpleNamespace(np=prompts)),
    )
    read = SecondRunner(runner)
    new = SimpleNamespace(req_id="new", prefill_token_ids=None, prompt_token_ids=[20, 21], sampling_params="params")
    read.begin(SimpleNamespace(finished_req_ids=["old"], scheduled_new_reqs=[new]))
    runner.prepare_attn(runner.prepare_inputs())
    assert (read.ids("new"), read.params("new")) == ([20, 21], "params")
    assert runner.sample()
    assert not read.sampling
    return read


@pytest.mark.parametrize("make", [first, lambda: first(asynchronous=True), second], ids=["first", "async", "second"])
def test_a_pass_is_read_from_the_buffers(make):
    runner = make()
    assert runner.requests() == REQUESTS
    assert runner.logits_at.tolist() == [4, 8]
    now = runner.read(0, shared=True, seeds={"new": 7, "decoding": 9})
    step, slots = now.step, now.step.slots
    assert step.ids.tolist() == list(range(20, 29))
    assert step.positions.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 9]
    assert step.rows.of_token.tolist() == [0] * 5 + [1] * 3 + [2]
    assert slots.of_token.tolist() == [28, 29, 30, 31, 8, 36, 37, 38, 13]
    assert slots.before.tolist() == [BEGINNING, 5 * BLOCK + 3, 3 * BLOCK]
    assert slots.computed.tolist() == COMPUTED
    assert slots.shared
    assert slots.seeds is None or slots.seeds.tolist() == [7, 0, 0]  # a seed only where a row begins
    assert not step.one_each


def test_the_end_of_a_prompt_is_its_last_token_or_the_first_after_it():
    now = first().read(0, shared=False, seeds={})
    assert now.step.prompt_end.tolist() == [4, 5 + 7, 8]
    assert now.step.slots.seeds is None


class VocabParallelEmbedding(nn.Embedding):
    """Named as vLLM's."""


def small_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Module()
    model.embed = VocabParallelEmbedding(32, 8)
    model.layers = nn.ModuleList([nn.LayerNorm(8) for _ in range(3)])
    for layer in model.layers:
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
        layer.register_parameter("packed", nn.Parameter(torch.empty(0)))  # as vLLM leaves a weight that it packed
    return model


def test_the_base_model_is_known_by_embedding_and_norms():
    model = small_model()
    recorded = {"rows": 8, "embedding": embedding_samples(model.embed.weight, 8)}
    recorded["norms"] = [parameter[0].item() for layer in model.layers[:2] for parameter in (layer.weight, layer.bias)]
    assert difference(recorded, model, model.layers, 1) is None
    other = small_model(1)
    assert "embedding" in difference(recorded, other, other.layers, 1)
    other.embed = model.embed
    assert "norms" in difference(recorded, other, other.layers, 1)
    other.embed = None
    assert "norms" in difference(recorded, other, other.layers, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pair", [True, False])
def test_edits_change_the_stream_where_a_row_fired_and_no_other_bit(pair, dtype):
    torch.manual_seed(0)
    hidden = torch.randn(6, 8).to(dtype)
    residual = torch.randn(6, 8).to(dtype) * 100 if pair else None
    stream = hidden + residual if pair else hidden.clone()
    where = torch.zeros(6, 3, dtype=torch.bool)
    where[1, 0] = where[4, 2] = where[5, 1] = True
    edit = torch.randn(6, 8) * where.any(dim=1, keepdim=True)
    allowed = torch.tensor([True, True, True, True, True, False])
    judged = Judged(Decision(where.any(dim=1), torch.zeros(6, 6)), where, edit, None)
    only = Judged(judged.decision, None, None, None)
    before = hidden.clone(), None if residual is None else residual.clone()
    found = kernels(lambda: apply_edits([(judged, None)], stream, hidden.clone(), residual))
    assert sum(found.values()) <= 6 + 2 * (dtype != torch.float32), found  # clone included
    if pair:
        residual.copy_(before[1])
    apply_edits([(judged, allowed), (only, None)], stream, hidden, residual)
    acted = torch.tensor([False, True, False, False, True, False])
    found = hidden + residual if pair else hidden
    assert torch.equal(found[acted], (stream.float() + edit).to(dtype)[acted])
    assert torch.equal(hidden[~acted], before[0][~acted])
    if pair:
        assert torch.equal(residual[~acted], before[1][~acted])
        assert not hidden[acted].any()


def running_of(max_tokens, ends=(), eos=None):
    """A pass in which the request "decoding" has 2 drafts: 10 tokens are known, 4 of them generated."""
    found = RunningPass.__new__(RunningPass)
    found.drafts = {"decoding": 2}
    params = SimpleNamespace(max_tokens=max_tokens, stop_token_ids=list(ends), eos_token_id=eos)
    found._runner = SimpleNamespace(params=lambda request: params)
    computed, lengths, prompts = np.array([0, 9]), np.array([5, 3]), np.array([5, 6])
    found._now = SimpleNamespace(requests=["new", "decoding"], computed=computed, lengths=lengths, prompts=prompts)
    return found


@pytest.mark.parametrize(
    ("params", "longest", "kept"),
    [
        ({"max_tokens": 100}, 100, 3),
        ({"max_tokens": 7}, 100, 3),
        ({"max_tokens": 6}, 100, 2),
        ({"max_tokens": 5}, 100, 1),
        ({"max_tokens": None}, 12, 2),
        ({"max_tokens": 100, "eos": 31}, 100, 2),
        ({"max_tokens": 100, "ends": [30]}, 100, 1),
        ({"max_tokens": 100, "ends": [99], "eos": 98}, 100, 3),
    ],
)
def test_drafts_behind_the_end_of_an_answer_are_not_kept(params, longest, kept):
    assert running_of(**params).kept("decoding", [30, 31, 32], longest) == kept
