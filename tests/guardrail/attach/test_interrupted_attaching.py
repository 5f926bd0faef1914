"""An interrupt at any call while a guardrail is attached: nothing is left half attached."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from traces import traces
from zoo import base_model, guarded, logits_of, token_ids

import sae_unlearn
from sae_unlearn import attach_guardrail


PACKAGE = str(Path(sae_unlearn.__file__).parent / "guardrail")


@contextmanager
def interrupted_at(number: int) -> Iterator[list[str]]:
    """A KeyboardInterrupt at the call of this number that is made in the guardrail's package, or inside PEFT, from
    `place_guardrail` on: before, the model is only read.

    Yields:
        The names of the functions called up to there.
    """
    called: list[str] = []

    def trace(frame, event, _):
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) or f"{os.sep}peft{os.sep}" in code.co_filename
        ours = ours and (bool(called) or code.co_name == "place_guardrail")
        if event == "call" and ours and not code.co_flags & inspect.CO_GENERATOR:  # which Python may be closing
            called.append(code.co_name)
            if len(called) > number:
                sys.settrace(None)
                raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        yield called
    finally:
        sys.settrace(None)


def with_lora() -> torch.nn.Module:
    return get_peft_model(base_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "bare": lambda: base_model("llama"),
    "guarded": lambda: guarded("llama"),
    "beside a LoRA": with_lora,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_attaching_that_is_interrupted_anywhere_leaves_nothing_half_attached(make, tmp_path):
    guarded("llama", layer=2).save_pretrained(tmp_path)
    with interrupted_at(sys.maxsize) as called:
        attach_guardrail(make(), tmp_path, adapter_name="second")
    assert {"place_guardrail", "inject_adapter", "update_layer", "set_adapter", "_write"} <= set(called)
    first = {name: called.index(name) for name in called}
    last = {name: number for number, name in enumerate(called)}
    model, ids = make(), token_ids(2, 8)
    untouched, plain = traces(model), logits_of(model, ids)
    for number in sorted({*first.values(), *last.values()}):
        with pytest.raises(KeyboardInterrupt), interrupted_at(number):
            attach_guardrail(model, tmp_path, adapter_name="second")
        assert traces(model) == untouched, called[number]
    assert torch.equal(logits_of(model, ids), plain)
    attach_guardrail(model, tmp_path, adapter_name="second")
