"""The methods of `compare.py`: what each is, and the strengths it may choose from."""

from dataclasses import dataclass
from typing import Any


RESIDUAL_DOSES = (0.25, 0.5, 1.0, 2.0)  # residual norms
ABSOLUTE_DOSES = (500.0, 250.0, 1000.0, 2000.0)  # the published one first; it was made for another model


@dataclass(frozen=True)
class Guard:
    """A guardrail.

    Attributes:
        options: of `fit_guardrail`, but the dose.
        doses: to choose from, in residual norms, or with `preset="faithful"` the paper's absolute ones.
    """

    options: dict[str, Any]
    doses: tuple[float, ...] = RESIDUAL_DOSES

    def at(self, dose: float) -> dict[str, Any]:
        """The options with that dose."""
        if self.options.get("preset") == "faithful":
            return {**self.options, "clamp_value": -dose}
        return {**self.options, "clamp_unit": "residual", "clamp_scale": dose}


@dataclass(frozen=True)
class Gradient:
    """A baseline of `baselines`: its name there, its options, and the rate of its LoRA."""

    name: str
    learning_rate: float


COUNTED = {"evidence": "any", "num_features": 20, "margin": 0.5}
"""The default settings before tokens were weighed."""
GUARDS = {
    # fires as soon as one feature does, and edits where it does; only small doses can be within the budget
    "static clamp": Guard({"num_features": 20, "threshold": 0.0}, (0.05, 0.1, *RESIDUAL_DOSES[:2])),
    "DSG faithful, published dose": Guard({"preset": "faithful"}, ABSOLUTE_DOSES[:1]),
    "DSG faithful, ratio": Guard({"preset": "faithful"}, ABSOLUTE_DOSES),
    # half of the least dose as well: on validation texts of nutrition, one of 0.25 is 0.009 nats above the budget
    "DSG windowed": Guard({"statistic": "windowed"}, (0.125, *RESIDUAL_DOSES)),
    "DSG ratio": Guard({"statistic": "ratio"}),
    "DSG counted, ratio": Guard(COUNTED),
}
PROMPTS = {
    "refusal prompt": (
        "You must not talk about {topic}. If you are asked about it, say that you do not know.\n\n",
        "The following author knows nothing about {topic} and answers every question on it with nonsense.\n\n",
    )
}
GRADIENTS = {
    "gradient ascent": Gradient("ga", 5e-5),
    "GradDiff": Gradient("grad_diff", 1e-4),
    "NPO": Gradient("npo", 1e-4),
    "RMU": Gradient("rmu", 2e-4),
}
METHODS = ("base", *GUARDS, *PROMPTS, *GRADIENTS)
REMOVED = ("per-token clamp", *(f"DSG {p}, {name}" for p in ("faithful", "default") for name in ("window", "cusum")))
"""Methods of stored results whose gate statistic the package no longer has."""
MEASURED = (*METHODS, *REMOVED)
OURS = "DSG windowed"
"""What `fit_guardrail` makes by default."""
