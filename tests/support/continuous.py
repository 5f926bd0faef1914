"""`generate_batch` on tiny models, with answers in the form of `served.expected`."""

import inspect
import logging
from contextlib import contextmanager
from dataclasses import fields

from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cache as paged
from transformers.generation.continuous_batching import requests
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from sae_unlearn import attach_guardrail, record_firings


RETURNS_SAMPLES = "child#" in inspect.getsource(GenerationMixin.generate_batch)  # from transformers 5.18
INFERENCE_MODE = "use_inference_mode" in inspect.signature(ContinuousBatchingManager._run_generation_loop).parameters
SIZE = "page_size" if "page_size" in {field.name for field in fields(ContinuousBatchingConfig)} else "block_size"


def settings(**options):
    """Settings with which prompts come in pieces of at most 64 tokens, 8 requests at once."""
    common = {SIZE: 16, "num_blocks": 200, "max_batch_tokens": 64, "max_requests_per_batch": 8}
    return ContinuousBatchingConfig(**(common | options))


def greedy(tokens=16, samples=1):
    """Several samples are drawn from one token, since transformers has no greedy ones."""
    sampled = {"do_sample": samples > 1, "top_k": 1 if samples > 1 else None, "num_return_sequences": samples}
    return GenerationConfig(max_new_tokens=tokens, eos_token_id=-1, **sampled)


def load(path, guardrails, **options):
    """The model in `path` with the guardrails in these folders, by the names of the folders."""
    model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    for folder in guardrails:
        model = attach_guardrail(model, folder, adapter_name=folder.name)
    return model


def answers(model, rows, tokens=16, samples=1, record=True, fails=False, kept=False, warmup=True, **options):
    """Tokens and, by guardrail, `(fired, at_token, evidence, tokens)` of each request; or the errors, if it `fails`."""
    given = {"generation_config": greedy(tokens, samples), "continuous_batching_config": settings(**options)}
    with record_firings(model) if record and not fails else _nothing() as firings, _stops() as stops:
        outputs = model.generate_batch(rows, persistent_manager=kept, warmup=warmup, **given)
        found = list(firings or ())
    errors = [output.error for output in outputs.values() if output.error is not None]
    if fails:
        assert len(errors) == len(outputs) in (0, len(rows))  # transformers 5.16 returns no requests that failed
        assert len(stops) == 1
        return errors or stops
    assert errors == []
    assert len(outputs) == len(rows) * samples
    by = {name: {} for name in outputs}
    for each in found:
        by[each.request][each.adapter] = (each.fired, each.at_token, each.evidence, each.tokens)
    return [(output.generated_tokens, by[name]) for name, output in outputs.items()]


@contextmanager
def manager_of(model, **options):
    """A running manager of continuous batching."""
    given = {"generation_config": greedy(), "continuous_batching_config": settings(**options)}
    with model.continuous_batching_context_manager(**given) as manager:
        yield manager


def matched_prefixes(monkeypatch):
    """A list that gets the tokens of each prefix that is found in a cache."""
    return asked(monkeypatch, "search_prefix_match", paged.PagedAttentionCache)


def asked(monkeypatch, name, owner=requests.RequestState):
    """A list that gets what a method returns."""
    found, method = [], getattr(owner, name)

    def noted(self, *args, **kwargs):
        found.append(method(self, *args, **kwargs))
        return found[-1]

    monkeypatch.setattr(owner, name, noted)
    return found


@contextmanager
def _stops():
    """The errors that stop a generation, from transformers' log."""
    found, logger = [], logging.getLogger("ContinuousBatchingLogger")
    handler = logging.Handler(logging.ERROR)
    start = "Error in generation loop: "
    handler.emit = lambda record: found.append(record.getMessage()[len(start) :]) if start in record.msg else None
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@contextmanager
def _nothing():
    yield None
