"""Cost: what fitting takes, beside one epoch of each gradient method on the same texts.

Every method runs in a process of its own, so that its peak of memory is its own. Gradient methods are timed over a few
steps and extrapolated to one epoch, by tokens; the guardrail's fit is timed whole.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.claims.claim import Claim, Verdict, Work, holds
from benchmarks.forget.fitting import BATCH, MAX_LENGTH, fitted, train
from benchmarks.forget.methods import GRADIENTS
from benchmarks.forget.setting import Setting
from benchmarks.speed.peak_memory import forget_peak, peak_bytes


TIMED_STEPS = 3
GUARDRAIL = "guardrail"
RULE = "fitting takes less time, and a smaller peak of memory, than one epoch of every gradient method, on every topic"


def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """Each method in a process of its own, which calls `in_this_process`."""
    found = {}
    for method in (GUARDRAIL, *list(GRADIENTS)[: 1 if work.quick else None]):
        command = [
            sys.executable,
            "-m",
            "benchmarks.claims.run",
            "cost-of",
            *work.arguments,
            "--topics",
            setting.texts.name,
        ]
        done = subprocess.run([*command, "--method", method], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Timing {method!r} ended with {done.returncode}: {done.stderr[-2000:]}")
        found[method] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def in_this_process(setting: Setting, method: str) -> dict[str, Any]:
    """Seconds, tokens a second and the peak of memory of one method, after one forward pass of the bare model."""
    texts = setting.texts
    forget_peak()
    setting.model(**setting.tokenizer(texts.fit[0], return_tensors="pt").to(setting.model.device))
    before = peak_bytes(setting.model.device)
    forget_peak()
    start, cpu = time.monotonic(), time.process_time()
    if method == GUARDRAIL:
        with fitted(setting, {}):
            spent = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
        tokens = done = _tokens(setting, [*texts.fit, *texts.other_fit], setting.size.max_length)
    else:
        tuned, _, spent = train(setting, method, TIMED_STEPS, looks=False)
        tuned.unload()
        mean = _tokens(setting, texts.fit, MAX_LENGTH) / len(texts.fit)
        mean += _tokens(setting, texts.other_fit, MAX_LENGTH) / len(texts.other_fit)
        done = TIMED_STEPS * BATCH * mean
        tokens = len(texts.fit) * mean  # an epoch: every text of the topic once, each with one other text
    return {
        "tokens_per_second": done / spent["seconds"],
        "seconds": spent["seconds"] * tokens / done,
        "cpu_seconds": spent["cpu_seconds"] * tokens / done,
        "tokens": tokens,
        "peak_bytes": peak_bytes(setting.model.device),
        "peak_bytes_of_a_forward_pass": before,
    }


def _tokens(setting: Setting, texts: Sequence[str], max_length: int) -> int:
    return sum(min(len(row), max_length) for row in setting.tokenizer(list(texts))["input_ids"])


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`."""
    yes = all(
        topic[GUARDRAIL][key] < other[key]
        for topic in found
        for name, other in topic.items()
        if name in GRADIENTS
        for key in ("seconds", "peak_bytes")
    )
    first = found[0]
    figure = "; ".join(
        f"{name} {one['seconds']:.0f} s, {one['tokens_per_second']:.0f} tokens/s, {one['peak_bytes'] / 1e9:.1f} GB"
        for name, one in first.items()
        if name == GUARDRAIL or name in GRADIENTS
    )
    return holds(yes, figure)


CLAIM = Claim("computational efficiency", RULE, measure, judge)
