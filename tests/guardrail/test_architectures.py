"""Every architecture of the zoo through every way a model is run: `test_mode[llama-static_cache-prefix]`.

A mode is a function of a `Case`; its docstring says what is held. Where an architecture cannot do something by itself
(`UNSUPPORTED`), transformers' own error must come through.
"""

import copy
import inspect
from functools import cache

import pytest
import torch
import transformers
from peft import get_peft_model
from transformers import DynamicCache
from zoo import LAYERS, ZOO, base_model, guarded, padded, plant, planted_config, token_ids, with_cache

from sae_unlearn import GuardrailNotReady, detach_guardrail, record_firings
from sae_unlearn.backbone import checkpointing
from sae_unlearn.backbone.call_arguments import cache_of
from sae_unlearn.backbone.checkpointing import HOOKS_OUTSIDE
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.errors import GuardrailUnsupported, UnlearnError
from sae_unlearn.guardrail import layer as guard_module
from sae_unlearn.guardrail.runtime import hooks as forward_inputs
from sae_unlearn.guardrail.runtime.call_context import CALL
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory


SCOPES = ("sequence", "prefix")
NEW = 12
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
STATEFUL = ("falcon_h1", "qwen3_next", "mamba")


class Case:
    """A guarded model, its base, and four prompts: one fires in the prompt, one later, one never, one as it likes."""

    def __init__(self, architecture: str, scope: str, sticky: bool, statistic: str) -> None:
        # frozen as under a guardrail: for a weight that requires gradients torch.matmul folds the batch into the rows
        # (torch 2.13, `should_fold`), which rounds otherwise where MKL has no AVX-512: seen with mamba's projections
        self.base = base_model(architecture).requires_grad_(False)
        self.layer = 0 if architecture == "mamba" else 1  # index of the guarded layer's entry in hidden_states, less 1
        # a gate that is not sticky tells more by its decisions, for the probes that a naive implementation must fail
        gate = {"threshold": 0.55, "min_tokens": 8} if sticky else {"threshold": 0.48, "min_tokens": 1}
        self.config = planted_config(gate_scope=scope, sticky=sticky, statistic=statistic, **gate)
        self.model = get_peft_model(base_model(architecture), self.config)
        plant(self.model)
        pool = [token_ids(1, (12, 7, 9, 5)[i % 4], seed=i)[0] for i in range(24)]
        if sticky:
            firings = self.firings(lambda: self.model.generate(**padded(pool), **GREEDY))
            at = [(f.at_token, len(row)) for f, row in zip(firings, pool, strict=True)]
            chosen = (
                next(i for i, (t, n) in enumerate(at) if t is not None and t <= n),
                next(i for i, (t, n) in enumerate(at) if t is not None and t > n),
                next(i for i, (t, n) in enumerate(at) if t is None),
            )
            pool = [pool[i] for i in (*chosen, next(i for i in range(24) if i not in chosen))]
        self.pool, self.rows = pool, pool[:4]
        self.assistant = base_model(architecture)  # near enough to the base for some of its drafts to be accepted
        with torch.no_grad():
            weight = self.assistant.get_input_embeddings().weight
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        self.batch = padded(self.rows)
        self.width = self.batch["input_ids"].shape[1]

    def firings(self, call):
        with record_firings(self.model) as firings, torch.no_grad():
            call()
        return list(firings)

    def alone(self, row, **kwargs):
        """Tokens generated for one row without padding."""
        ids = row[None]
        return self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **(GREEDY | kwargs))[0]

    def each_alone(self, rows=None, **kwargs):
        return [self.alone(row, **kwargs) for row in rows or self.rows]

    def logits(self, ids, mask=None, model=None):
        """Logits of one plain forward pass in which every token has the position that it has in its row."""
        mask = torch.ones_like(ids) if mask is None else mask
        kwargs = {}
        if "position_ids" in inspect.signature(self.base.forward).parameters:
            kwargs["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        with torch.no_grad():
            return (model or self.model)(input_ids=ids, attention_mask=mask, **kwargs).logits


@cache
def case(architecture: str, scope: str, sticky: bool = True, statistic: str = "ratio") -> Case:
    return Case(architecture, scope, sticky, statistic)


def equal(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# ------------------------------------------------------------------------------------------------------- forward passes


def plain_forward(it: Case):
    """Rows that fire are edited, and the logits of quiet rows are the base's bit for bit."""
    length = len(it.rows[0])
    ids = torch.cat([it.rows[0][None], token_ids(15, length, seed=3)])
    with torch.no_grad():
        plain = it.base(input_ids=ids).logits
        with record_firings(it.model) as firings:
            guarded = it.model(input_ids=ids).logits
    fired = torch.tensor([firing.fired for firing in firings])
    assert fired.any()
    assert not fired.all()
    assert torch.equal(guarded[~fired], plain[~fired])
    assert (guarded[fired] - plain[fired]).abs().amax(dim=(1, 2)).min() > 1e-3


def taken_off(it: Case):
    """Disabled, unloaded and detached, the model gives the base's logits bit for bit, and keeps no hook of ours."""
    ids = it.rows[0][None]
    plain = it.logits(ids, model=it.base)
    assert not torch.equal(it.logits(ids), plain)
    with it.model.disable_adapter():
        assert torch.equal(it.logits(ids), plain)
    hooks = count_hooks(it.base)
    architecture = it.base.name_or_path.removeprefix("tiny-")
    thawed = it.logits(ids, model=base_model(architecture))
    for take_off in (lambda model: model.unload(), detach_guardrail):
        model = get_peft_model(base_model(architecture), planted_config())
        plant(model)
        bare = take_off(model)
        assert type(bare) is type(it.base)
        assert torch.equal(it.logits(ids, model=bare), thawed)
        assert count_hooks(bare) <= hooks  # transformers puts its own on when hidden states are first asked for
        assert dict(bare.named_parameters()).keys() == dict(it.base.named_parameters()).keys()


def count_hooks(model) -> int:
    with torch.no_grad():
        model(input_ids=token_ids(1, 4), output_hidden_states=True)
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def padding_side(it: Case):
    """Left-padded, right-padded and alone, a row has the same logits at its tokens."""
    right = padded(it.rows, "right")
    from_left = it.logits(it.batch["input_ids"], it.batch["attention_mask"])
    from_right = it.logits(right["input_ids"], right["attention_mask"])
    for i, row in enumerate(it.rows):
        alone = it.logits(row[None])[0]
        torch.testing.assert_close(from_left[i, -len(row) :], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(from_right[i, : len(row)], alone, atol=1e-4, rtol=1e-4)


def hidden_states(it: Case):
    """`hidden_states[layer + 1]` is what the next layer saw, the edit included, even if they were asked for before."""
    plain = copy.deepcopy(it.base)
    with torch.no_grad():  # transformers puts its capturing hooks on now, before the guardrail's
        unedited = plain(**it.batch, output_hidden_states=True).hidden_states[it.layer + 1].clone()
    seen, late = {}, get_peft_model(plain, copy.deepcopy(it.config))
    plant(late)
    for model in (it.model, late):
        following = find_decoder_layers(model.get_base_model()).layers[it.config.layer + 1]
        handle = following.register_forward_pre_hook(
            lambda m, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with torch.no_grad():
            shown = model(**it.batch, output_hidden_states=True).hidden_states[it.layer + 1]
        handle.remove()
        assert torch.equal(shown, seen["x"])
        assert not torch.equal(shown, unedited)


def gradient_checkpointing(it: Case):
    """Training mode with checkpointing gives the gradients of training mode without, at embeddings below the guard."""
    ids = torch.cat([it.rows[0][None], token_ids(3, len(it.rows[0]), seed=6)])
    model, gradients, runs = it.model.get_base_model(), {}, {}
    model.get_input_embeddings().weight.requires_grad_()  # the base is frozen under a guardrail
    inner = [m for m in find_decoder_layers(model).layers[0].modules() if not list(m.children())]
    try:
        model.train()
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            calls = []
            handles = [m.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1)) for m in inner]
            with record_firings(model) as firings:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                (gradients[checkpointing],) = torch.autograd.grad(loss, model.get_input_embeddings().weight)
            for handle in handles:
                handle.remove()
            runs[checkpointing] = len(calls)
            assert len(firings) == 4
            assert firings[0].fired
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    assert runs[True] > 1.5 * runs[False] > 0  # recomputed, up to the last tensor that is needed
    assert gradients[False].abs().max() > 0
    torch.testing.assert_close(gradients[True], gradients[False])


# ----------------------------------------------------------------------------------------------------------- generation


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


def same_records(firings, it: Case, ids, mask) -> bool:
    """Whether rows were recorded as one plain forward pass over their tokens records them.

    What is hot at the guarded layer does not depend on that layer's edits, so this holds for both scopes.
    """
    expected = it.firings(lambda: it.logits(ids, mask))
    fields = ("row", "evidence", "tokens", "statistic")
    return [[getattr(f, k) for k in fields] for f in firings] == [[getattr(f, k) for k in fields] for f in expected]


def beam_gap(it: Case, rows) -> float:
    """Largest difference between the beams' scores and the log-probabilities of the same tokens, teacher-forced."""
    batch = padded([row[:n] for row, n in zip(rows, (5, 3, 4, 5), strict=True)])
    out = it.model.generate(
        **batch,
        **GREEDY,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    start = batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"].repeat_interleave(4, 0), torch.ones(16, NEW, dtype=torch.long)], dim=1)
    logits = it.logits(out.sequences, mask)[:, start - 1 : -1]
    scores = logits.log_softmax(-1).gather(2, out.sequences[:, start:, None])[..., 0].sum(dim=1)
    return float((scores - out.sequences_scores).abs().max())


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


class state_on_module:
    """The naive implementation: the gate's history hangs on the module, and the cache's operations miss it."""

    def __enter__(self):
        self.original = guard_module.history_of
        held = {}

        def history_of(cache, owner, past, *_):
            if owner not in held or (isinstance(past, int) and past == 0):
                held[owner] = DynamicGateHistory(owner)
            return held[owner]

        guard_module.history_of = history_of

    def __exit__(self, *_):
        guard_module.history_of = self.original


class drafts_judged_whole:
    """The naive implementation of the sequence scope: the tokens of a draft are judged together, as a prompt is."""

    def __enter__(self):
        self.original = forward_inputs.noted
        forward_inputs.noted = lambda name: None if name == CALL else self.original(name)

    def __exit__(self, *_):
        forward_inputs.noted = self.original


BOTH = {
    f.__name__: f
    for f in (
        plain_forward,
        taken_off,
        padding_side,
        hidden_states,
        gradient_checkpointing,
        left_padded_greedy,
        sampling,
        static_cache,
        prompt_lookup,
        assistant,
    )
}
PREFIX = {f.__name__: f for f in (beams, chunked_prefill, second_turn)}
MODES = BOTH | PREFIX
UNSUPPORTED = {
    **dict.fromkeys([(n, m) for n in STATEFUL for m in ("prompt_lookup", "assistant")], "not supported with stateful"),
    # transformers before 5.24, and from then on
    ("mamba", "chunked_prefill"): "Cannot use prefill chunking without a cache|can only be called on Attention layers",
    ("mamba", "second_turn"): "expected one token after those in a recurrent cache",
}


COLUMNS = ("llama", "falcon_h1")  # every mode in every scope: attention alone, and attention beside a recurrent state


def tier(architecture: str, mode: str, scope: str) -> list[pytest.MarkDecorator]:
    """Outside the columns each mode takes one of the scopes in turn, so that every pair is tried; nightly has all.

    The fast tier tries every architecture in one mode, and every mode on one architecture.
    """
    turn = list(ZOO).index(architecture) + list(MODES).index(mode)
    in_turn = mode in PREFIX or scope == SCOPES[turn % len(SCOPES)]
    if in_turn and (architecture == "llama" or mode == "plain_forward"):
        return []
    return [pytest.mark.slow if in_turn or architecture in COLUMNS else pytest.mark.nightly]


@pytest.mark.parametrize(
    ("architecture", "mode", "scope"),
    [
        pytest.param(
            architecture, mode, scope, id=f"{architecture}-{mode}-{scope}", marks=tier(architecture, mode, scope)
        )
        for architecture in ZOO
        for scope in SCOPES
        for mode in (MODES if scope == "prefix" else BOTH)
    ],
)
def test_mode(architecture, mode, scope):
    it = case(architecture, scope)
    if mode == "gradient_checkpointing" and not HOOKS_OUTSIDE:
        with pytest.raises(GuardrailUnsupported, match=r"^gradient_checkpointing=True: expected transformers >= 5\.23"):
            MODES[mode](it)
    elif (architecture, mode) in UNSUPPORTED:
        with pytest.raises(ValueError, match=UNSUPPORTED[architecture, mode]):
            MODES[mode](it)
    else:
        MODES[mode](it)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "scope"), [(mode, scope) for scope in SCOPES for mode in (MODES if scope == "prefix" else BOTH)]
)
def test_mode_with_signed_scores(mode, scope):
    """Of a statistic whose sums can fall, and whose gate reads features of its own."""
    if mode == "gradient_checkpointing" and not HOOKS_OUTSIDE:
        pytest.skip("refused, whatever the statistic")
    MODES[mode](case("llama", scope, statistic="windowed"))


PROBED = ["llama", "mistral", "gemma3", "gpt2", "bloom", "mixtral"]  # of those that can take drafts back


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ZOO)
def test_beams_are_exact_where_state_on_the_module_is_not(architecture):
    it = case(architecture, "prefix", sticky=False)
    for start in range(0, 24, 4):
        rows = it.pool[start : start + 4]
        assert beam_gap(it, rows) < 1e-3
        with state_on_module():
            if beam_gap(it, rows) > 1e-2:
                return
    raise AssertionError("the probe cannot tell the two apart")


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("architecture", PROBED)
@pytest.mark.parametrize("decoding", ["prompt_lookup", "assistant"])
def test_drafts_are_exact_where_state_on_the_module_is_not(decoding, architecture, scope):
    it = case(architecture, scope, sticky=False)
    assert differs_first(it, decoding, state_on_module)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PROBED)
def test_drafts_are_exact_where_judging_a_draft_whole_is_not(architecture):
    it = case(architecture, "sequence", sticky=False)
    assert differs_first(it, "assistant", drafts_judged_whole)


def differs_first(it: Case, decoding, naive) -> bool:
    """Whether the naive gate goes wrong on one of the rows; ours must be right on all of them up to there."""
    how = {"prompt_lookup": {"prompt_lookup_num_tokens": 4}, "assistant": {"assistant_model": it.assistant}}[decoding]
    for row in it.pool:
        row = torch.cat([row, row])
        greedy = it.alone(row)
        assert torch.equal(it.alone(row, **how), greedy)
        with naive():
            if not torch.equal(it.alone(row, **how), greedy):
                return True
    return False


_SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "pad_token_id": 0, "eos_token_id": 96}
OF_THEIR_OWN = {
    "minimax": (
        lambda: transformers.MiniMaxConfig(**_SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        GuardrailNotReady,
        "MiniMaxCache overrides how to count its layers.*use_cache=False",
    ),
}


@pytest.mark.parametrize("architecture", OF_THEIR_OWN)
def test_a_cache_that_can_hold_no_history_is_refused_by_name(architecture):
    config, error, message = OF_THEIR_OWN[architecture]
    model = get_peft_model(transformers.AutoModelForCausalLM.from_config(config()).eval(), planted_config())
    plant_uncached(model)
    with torch.no_grad(), pytest.raises(error, match=message):
        model.generate(input_ids=token_ids(1, 5), **GREEDY)
    with record_firings(model) as firings, torch.no_grad():
        model.generate(input_ids=token_ids(1, 5), use_cache=False, **GREEDY)
    assert len(firings) == GREEDY["max_new_tokens"]


def test_a_model_whose_layers_are_no_modules_is_refused():
    """A guardrail on XLM's attentions would take what they add for the residual stream."""
    config = transformers.XLMConfig(vocab_size=97, emb_dim=32, n_layers=4, n_heads=4, causal=True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnlearnError, match="expected one list of decoder layers, got attentions"):
        get_peft_model(model, planted_config())


def test_a_recurrent_cache_goes_on_token_by_token_and_refuses_several_at_once():
    model, ids = guarded("mamba", gate_scope="prefix"), token_ids(1, 8)
    with record_firings(model) as whole, torch.no_grad():
        expected = model(input_ids=ids).logits
    with record_firings(model) as parts, torch.no_grad():
        out = model(input_ids=ids[:, :5], use_cache=True)
        with pytest.raises(GuardrailUnsupported, match="expected one token after"):
            model(input_ids=ids[:, 5:], use_cache=True, **with_cache(model, cache_of(out)))
        for token in ids[:, 5:].split(1, dim=1):
            out = model(input_ids=token, use_cache=True, **with_cache(model, cache_of(out)))
    torch.testing.assert_close(out.logits[:, -1], expected[:, -1], atol=1e-5, rtol=1e-5)
    assert [(f.statistic, f.tokens) for f in parts] == [(f.statistic, f.tokens) for f in whole]


def test_checkpoints_that_run_hooks_again_are_refused_where_a_guardrail_is_in_force(monkeypatch):
    """As a layer's are before transformers 5.23."""
    monkeypatch.setattr(checkpointing, "HOOKS_OUTSIDE", False)
    model, ids = guarded("llama"), token_ids(1, 6)
    model.get_base_model().gradient_checkpointing_enable()
    model(input_ids=ids)  # nothing is checkpointed while it is evaluated
    model.train()
    with torch.no_grad():
        model(input_ids=ids)
    with pytest.raises(GuardrailUnsupported, match=r"^gradient_checkpointing=True: expected transformers"):
        model(input_ids=ids)
    with model.disable_adapter():
        model(input_ids=ids)


def plant_uncached(model):
    model.config.use_cache = False
    plant(model)
    model.config.use_cache = True


def test_the_zoo_holds_what_the_readme_claims():
    assert len(ZOO) >= 14
    assert {"mixtral", "gpt_oss", "falcon_h1", "qwen3_next", "mamba"} <= ZOO.keys()
    assert LAYERS == 4
