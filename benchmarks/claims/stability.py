"""Stability over hyperparameters: how many of the settings that one might have tried are of use."""

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.claim import DEFAULT_DOSE, Claim, Verdict, Work, holds
from benchmarks.forget.cached_front import cached_front
from benchmarks.forget.choice import BUDGET, Candidate
from benchmarks.forget.fitting import STEPS, fitted, train, validation_changes
from benchmarks.forget.methods import GRADIENTS
from benchmarks.forget.setting import Setting
from sae_unlearn.evaluation import Estimate
from sae_unlearn.guardrail import GuardrailError


USEFUL = 1.0  # nats per token that the topic loses at least
SETTINGS = (
    {},
    {"num_features": 5},
    {"num_features": 10},
    {"num_features": 20},
    {"ratio_percentile": 95.0},
    {"ratio_percentile": 99.5},
    {"importance": "squared_mean"},
    {"threshold_percentile": 90.0},
    {"threshold_percentile": 95.0},
    {"threshold_percentile": 99.0},
    {"margin": 0.0},
    {"margin": 0.5},
    {"statistic": "ratio"},
    {"evidence": "any"},
    {"num_gate_features": 100},
    {"num_gate_features": 600},
    {"clamp_scale": 0.25},
    {"clamp_scale": 1.0},
    {"clamp_mode": "all"},
)
SCALES = (0.25, 1.0, 4.0)  # of the gradient methods' rates
LOOKS = (1 / 3, 2 / 3, 1.0)  # of the steps
RULE = (
    f"of one-at-a-time changes of its settings, a larger share forgets {USEFUL:g} nats within the damage of {BUDGET:g} "
    "than of each gradient method's rates and lengths (validation texts)"
)


def measure(setting: Setting, work: Work) -> dict[str, Any]:
    """Every setting on the validation texts, or why it gives no guardrail, or no state."""
    found: dict[str, list[Any]] = {
        "guardrail": [
            work.part(f"guardrail {change}", lambda change=change: _guardrail(setting, work, change))
            for change in (SETTINGS[:2] if work.quick else SETTINGS)
        ]
    }
    steps = 3 if work.quick else STEPS
    for method in list(GRADIENTS)[:1] if work.quick else GRADIENTS:
        found[method] = []
        for scale in SCALES[:1] if work.quick else SCALES:
            found[method] += work.part(
                f"{method} {scale}", lambda method=method, scale=scale: _states(setting, method, scale, steps)
            )
    return found


def _guardrail(setting: Setting, work: Work, change: dict[str, Any]) -> dict[str, Any]:
    """A guardrail with one of its settings changed."""
    try:
        with (
            cached_front(setting.model, setting.layer, work.front),
            fitted(setting, {"clamp_scale": DEFAULT_DOSE, **change}) as guarded,
        ):
            two = (changes for changes, _ in validation_changes(setting, guarded, work.base))
            return Candidate.of(0.0, *two).to_dict() | {"setting": change}
    except GuardrailError as error:
        return {"setting": change, "refused": str(error)}


def _states(setting: Setting, method: str, scale: float, steps: int) -> list[dict[str, Any]]:
    """A gradient method at a multiple of its rate, after each of `LOOKS`."""
    tuned, keeper, _ = train(setting, method, steps, scale)
    tuned.unload()
    at = {int(c.strength): c for c in keeper.candidates}
    found = []
    for look in LOOKS:
        wanted = round(look * steps)
        state = at[wanted].to_dict() if wanted in at else {"refused": "stopped before, over the budget"}
        found.append(state | {"setting": {"rate": scale, "steps": wanted}})
    return found


def useful(state: dict[str, Any]) -> bool:
    """Whether a setting forgets enough within the budget."""
    return "refused" not in state and state["damage"] <= BUDGET and state["forgotten"] >= USEFUL


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """By `RULE`, over the settings of all topics."""
    shares = {
        name: Estimate.share([useful(state) for topic in found for state in topic.get(name, ())])
        for name in found[0]
        if isinstance(found[0][name], list)
    }
    ours, others = shares["guardrail"], {name: s for name, s in shares.items() if name != "guardrail"}
    spread = [
        s["forgotten"] for topic in found for s in topic["guardrail"] if "refused" not in s and s["damage"] <= BUDGET
    ]
    ends = f", forgetting {min(spread):.2f} to {max(spread):.2f} where within" if spread else ""
    figure = f"{ours.value:.2f} of {ours.n} settings{ends}; " + ", ".join(
        f"{name} {share.value:.2f} of {share.n}" for name, share in others.items()
    )
    return holds(all(ours.value > share.value for share in others.values()), figure)


CLAIM = Claim("stability over hyperparameters", RULE, measure, judge)
