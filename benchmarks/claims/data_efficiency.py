"""Data efficiency: little text of the topic does nearly as well as all of it."""

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.claim import Claim, Verdict, Work, holds, outcome, pooled, within
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.choice import BUDGET
from benchmarks.forget.setting import Setting


SHARES = (5, 10, 25, 50, 100)  # per cent of the topic's texts to fit on
LITTLE, ENOUGH = 10, 0.8
RULE = (
    f"with {LITTLE} % of the topic's texts at least {ENOUGH:g} of what is forgotten with all of them is forgotten, and "
    f"other text loses at most {BUDGET:g}"
)


def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """The default settings with each share, on the test texts."""
    texts = setting.texts.fit
    with cached_front(setting.model, setting.layer, work.front):
        return {
            str(share): {"texts": n} | outcome(setting, work.base, {}, texts[:n])
            for share in SHARES
            if (n := max(1, len(texts) * share // 100))
        }


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`, over the texts of all topics; a share that no guardrail can be fitted with forgets nothing."""
    parts, at = [], {}
    for share in SHARES:
        cells = [topic[str(share)] for topic in found]
        refused = sum("refused" in cell for cell in cells)
        cells = [cell for cell in cells if "refused" not in cell]
        mean = pooled(cells, "test").value * len(cells) / len(found) if cells else 0.0
        at[share] = (mean, not cells or within(cells))
        parts.append(f"{share} % {mean:+.2f}" + (f" ({refused} of {len(found)} topics refused)" if refused else ""))
    (little, fine), (whole, _) = at[LITTLE], at[100]
    return holds(fine and whole > 0 and little >= ENOUGH * whole, ", ".join(parts))


CLAIM = Claim("data efficiency", RULE, measure, judge)
