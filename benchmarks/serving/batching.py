"""Tokens and records of transformers' `generate_batch`, compared with those of `generate()`.

    python -m benchmarks.serving.batching FOLDER [SCENARIO ...]
    python -m benchmarks.serving.batching FOLDER --write      # benchmarks/results/batching_equality.json

`FOLDER` is that of `reference`; a scenario that is there already is kept.
"""

import functools
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import Scheduler

from benchmarks.serving.kept import run_or_write
from benchmarks.serving.reference import FIELDS, TOKENS
from sae_unlearn import attach_guardrail, detach_guardrail, record_firings
from sae_unlearn.demo.model import load_demo_model


RESULTS = Path(__file__).resolve().parents[1] / "results" / "batching_equality.json"
WHOLE = {"max_batch_tokens": 8192, "allow_block_sharing": False}


@dataclass(frozen=True)
class Scenario:
    """One run over all prompts.

    Attributes:
        adapter (str): Folder of the guardrail, `none` for the bare model.
        what (str): For the table.
        batching (dict): Options of `ContinuousBatchingConfig`.
        samples (int): Answers to each prompt.
    """

    adapter: str
    what: str
    batching: dict[str, Any] = field(default_factory=dict)
    samples: int = 1


SCENARIOS = {
    "bare": Scenario("none", "no guardrail"),
    "prefix": Scenario("prefix", "prompts in pieces of at most 64 tokens", {"max_batch_tokens": 64}),
    "full": Scenario("prefix", "a small cache: requests computed again", {"num_blocks": 60, "max_batch_tokens": 512}),
    "sequence": Scenario("sequence", "whole prompts", WHOLE),
    "refuse": Scenario("refuse", 'action="refuse"', {"max_batch_tokens": 128}),
    "record": Scenario("record", 'action="record"', {"max_batch_tokens": 256}),
    "samples": Scenario("prefix", "two samples of each prompt, forked", {"max_batch_tokens": 128}, samples=2),
}


def run(folder: Path, scenario: Scenario) -> dict[str, Any]:
    """Answer all prompts, and return how many answers and records are the same and what happened."""
    reference = json.loads((folder / "reference.json").read_text())
    model, _ = load_demo_model()
    on: Any = model
    if scenario.adapter != "none":
        on = attach_guardrail(model, folder / scenario.adapter)
    common = {"page_size": 16, "num_blocks": 600, "max_batch_tokens": 512, "max_requests_per_batch": 16}
    with counted() as counts:
        given = {
            "generation_config": GenerationConfig(
                max_new_tokens=TOKENS,
                do_sample=scenario.samples > 1,  # transformers has no greedy samples
                top_k=1 if scenario.samples > 1 else None,
                eos_token_id=model.generation_config.eos_token_id,
                num_return_sequences=scenario.samples,
            ),
            "continuous_batching_config": ContinuousBatchingConfig(**(common | scenario.batching)),
        }
        if scenario.adapter == "none":
            outputs, firings = on.generate_batch(reference["ids"], **given), []
        else:
            with record_firings(on) as recorded:
                outputs = on.generate_batch(reference["ids"], **given)
                firings = list(recorded)
            detach_guardrail(on)
    return {
        "what": scenario.what,
        "adapter": scenario.adapter,
        "transformers": transformers.__version__,
        "passes": dict(counts),
        "runs": [compare(reference, scenario, list(outputs.values()), firings)],
    }


def compare(reference: dict[str, Any], scenario: Scenario, outputs: list[Any], firings: list[Any]) -> dict[str, Any]:
    """How many prompts have the tokens, and the records, of `generate()`."""
    by = {firing.request: firing for firing in firings}
    found: Counter[str] = Counter(prompts=len(reference["ids"]), tokens=0, records=0, fired=0, changed=0)
    for number, (wanted, bare) in enumerate(zip(reference[scenario.adapter], reference["none"], strict=True)):
        own = outputs[number * scenario.samples : (number + 1) * scenario.samples]
        found["tokens"] += bool(own) and all(output.generated_tokens == wanted["tokens"] for output in own)
        found["changed"] += wanted["tokens"] != bare["tokens"]
        if wanted["record"] is not None:
            expected = [wanted["record"][name] for name in FIELDS]
            records = [by.get(output.request_id) for output in own]
            found["records"] += all(r is not None and [getattr(r, f) for f in FIELDS] == expected for r in records)
            found["fired"] += wanted["record"]["fired"]
    return dict(found)


class counted:
    """Count pieces of prompts before the last, requests that are computed again, and forks in the block."""

    def __enter__(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        self._schedule, self._again, self._fork = (
            Scheduler._schedule_request,
            RequestState.create_equivalent_initial_request,
            RequestState.fork,
        )
        schedule = self._schedule

        def pieces(scheduler: Any, state: Any, *args: Any) -> Any:
            result = schedule(scheduler, state, *args)
            counts["pieces"] += bool(state.remaining_prefill_tokens)
            return result

        Scheduler._schedule_request = pieces
        RequestState.create_equivalent_initial_request = _counting(self._again, counts, "resumed")
        RequestState.fork = _counting(self._fork, counts, "forks")
        return counts

    def __exit__(self, *error: Any) -> None:
        Scheduler._schedule_request = self._schedule
        RequestState.create_equivalent_initial_request, RequestState.fork = self._again, self._fork


def _counting(call: Callable[..., Any], counts: Counter[str], name: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def count(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return call(*args, **kwargs)

    return count


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    run_or_write(Path(sys.argv[1]), "batching", SCENARIOS, sys.argv[2:], run, RESULTS)
