"""Ways to generate. A mode is a function of a `Case`; its docstring says what is held."""

import torch
from architecture_case import GREEDY, NEW, Case, beam_gap, equal, same_records
from transformers import DynamicCache
from zoo import with_cache

from sae_unlearn.backbone.call_arguments import cache_of


def left_padded_greedy(it: Case):
    """A left-padded batch generates what each row generates alone, and a quiet row what the base does."""
    alone = it.each_alone()
    firings = it.firings(lambda: alone.append(it.model.generate(**it.batch, **GREEDY)))
    together = alone.pop()
    assert equal([row[it.width - len(prompt) :] for row, prompt in zip(together, it.rows, strict=True)], alone)
    assert [firing.fired for firing in firings][:3] == [True, True, False]
    assert torch.equal(together[2], it.base.generate(**it.batch, **GREEDY)[2])


def sampling(it: Case):
    """With `num_return_sequences` each row has the gate record, and (prefix) the logits, of its own tokens."""
    out = None

    def run():
        nonlocal out
        torch.manual_seed(0)
        settings = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 3, "top_k": 0}
        out = it.model.generate(**it.batch, **settings, return_dict_in_generate=True, output_logits=True)

    firings = it.firings(run)
    mask = torch.cat([it.batch["attention_mask"].repeat_interleave(3, 0), torch.ones(12, NEW, dtype=torch.long)], dim=1)
    assert len({tuple(row.tolist()) for row in out.sequences}) == 12
    assert same_records(firings, it, out.sequences[:, :-1], mask[:, :-1])
    if it.config.gate_scope == "prefix":
        forced = it.logits(out.sequences, mask)[:, it.width - 1 : -1]
        torch.testing.assert_close(torch.stack(out.logits, dim=1), forced, atol=1e-3, rtol=1e-3)


def beams(it: Case):
    """A beam's score is the log-probability of its tokens."""
    assert beam_gap(it, it.rows) < 1e-3


def static_cache(it: Case):
    """A static cache generates and records what a dynamic one does."""
    static, dynamic = [], []
    recorded = it.firings(lambda: static.append(it.model.generate(**it.batch, **GREEDY, cache_implementation="static")))
    assert recorded == it.firings(lambda: dynamic.append(it.model.generate(**it.batch, **GREEDY)))
    assert equal(static, dynamic)


def prompt_lookup(it: Case):
    """Prompt lookup generates what greedy decoding does."""
    rows = [torch.cat([row, row]) for row in it.rows[:3]]  # there must be something to look up
    assert equal(it.each_alone(rows, prompt_lookup_num_tokens=4), it.each_alone(rows))


def assistant(it: Case):
    """Decoding with an assistant model generates what greedy decoding does."""
    rows = it.rows[:3]
    assert equal(it.each_alone(rows, assistant_model=it.assistant), it.each_alone(rows))


def chunked_prefill(it: Case):
    """A prompt read in chunks of 4 = read at once, where each token is judged by the tokens up to it."""
    assert equal(it.each_alone(prefill_chunk_size=4), it.each_alone())
    ids = torch.stack([row[:5] for row in it.rows])
    cache, parts = DynamicCache(config=it.base.config), []
    for chunk in ids.split(2, dim=1):
        with torch.no_grad():
            parts.append(it.model(input_ids=chunk, **with_cache(it.model, cache)).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), it.logits(ids), atol=1e-4, rtol=1e-4)


def second_turn(it: Case):
    """A second turn on the first one's cache = one long sequence, where each token is judged by the tokens up to it."""
    for row, following in zip(it.rows, reversed(it.rows), strict=True):
        ids = row[None]
        first = it.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY, return_dict_in_generate=True
        )
        both = torch.cat([first.sequences[0], following])
        reused = []
        record = it.firings(lambda: reused.append(it.alone(both, **with_cache(it.model, cache_of(first)))))  # noqa: B023
        assert torch.equal(reused[0], it.alone(both))
        assert same_records(record, it, reused[0][None, :-1], torch.ones_like(reused[0])[None, :-1])
