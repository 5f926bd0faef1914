"""Options of `fit_guardrail`, their presets and their checks."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from sae_unlearn.errors import GuardrailError
from sae_unlearn.options.field import check_options, documented, option


PRESETS: dict[str | None, dict[str, Any]] = {
    None: {
        "num_features": 40,
        "ratio_percentile": 99.0,
        "threshold_percentile": 97.5,
        "margin": 0.25,
        "importance": "mean_squared",
        "clamp_mode": "fired",
        "min_tokens": 8,
    },
    "faithful": {
        "num_features": 20,
        "ratio_percentile": 95.0,
        "threshold_percentile": 95.0,
        "margin": 0.0,
        "importance": "squared_mean",
        "clamp_mode": "all",
        "min_tokens": 1,
        "evidence": "any",
    },
}
"""Values of options that are None, by preset."""
FIXED = {"faithful": ("importance", "clamp_mode", "min_tokens", "evidence")}
"""Options that a preset fixes."""
PUBLISHED_CLAMP_VALUE = -500.0
CLAMP_SCALES = {"feature": 16.0, "residual": 0.5, "absolute": 500.0}
"""Default dose in each unit."""

_FEATURES, _GATE, _DOSE, _ACTION = "features", "gate", "dose", "action"
_TEXTS, _RUN = "reading texts", "running the fit"


def _shown(name: str) -> str:
    """Return the description of the default of an option that presets set."""
    usual, published = (f"{v:g}" if isinstance(v, float) else v for v in (PRESETS[p][name] for p in (None, "faithful")))
    return f"{usual}; faithful: {published}"


@documented
@dataclass(kw_only=True)
class GuardrailFitConfig:
    """Options of `fit_guardrail`, checked at construction.

    Every field can also be passed to `fit_guardrail` by name.

    Example:

    ```python
    config = GuardrailFitConfig(num_features=20, chat_template=True)
    guarded = fit_guardrail(model, tokenizer, sae, forget, retain, config=config)
    guarded = fit_guardrail(model, tokenizer, sae, forget, retain, num_features=20, chat_template=True)  # the same
    ```

    Raises:
        GuardrailError: If a value is out of range, or two do not go together; the message names them.
    """

    layer: int | None = option(
        None, "0-based decoder layer whose output is guarded", group=_FEATURES, shown="the layer of the SAE", low=0
    )
    preset: Literal["faithful"] | None = option(
        None,
        "faithful: the published procedure, with its scores, counting, clamp (-500, all features) and use of rows",
        group=_FEATURES,
    )
    num_features: int | None = option(
        None, "number N of features that are guarded", group=_FEATURES, shown=_shown("num_features"), low=1
    )
    ratio_percentile: float | None = option(
        None,
        "features below this percentile of the forget/retain ratio are not selected; on a narrow SAE, 95 selects "
        "features that are active on most text",
        group=_FEATURES,
        shown=_shown("ratio_percentile"),
        low=0,
        high=100,
    )
    importance: Literal["mean_squared", "squared_mean"] | None = option(
        None, "score by which features are ranked", group=_FEATURES, shown=_shown("importance")
    )
    features: list[int] | None = option(None, "ids of the features, instead of selecting them", group=_FEATURES, low=0)
    topk: Literal["threshold"] | None = option(
        None,
        "approximate each feature of a topk SAE, or of one with normalized inputs, by a threshold; measures the error",
        group=_FEATURES,
    )

    statistic: Literal["ratio", "windowed"] | None = option(
        None,
        "statistic that the gate compares with its threshold; windowed: signed weights of features, fitted on windows "
        "of tokens, which text around the topic dilutes less",
        group=_GATE,
        shown="windowed; ratio with evidence, topk or a threshold by hand, without one of the corpora, with no-sticky "
        "or with preset faithful",
    )
    num_gate_features: int = option(
        300, "features that the gate reads with statistic windowed, besides the guarded ones", group=_GATE, low=1
    )
    gate_reads: Literal["features", "direction"] = option(
        "features",
        "what statistic windowed scores tokens by; direction: one direction of the residual stream, without features "
        "that explain it",
        group=_GATE,
    )
    paragraphs: bool = option(
        False,
        "judge each paragraph by itself, too, with statistic windowed; needs a tokenizer that writes a blank line as "
        "one token",
        group=_GATE,
    )
    evidence: Literal["any", "log_ratio"] | None = option(
        None,
        "what a hot token counts; log_ratio: the log-likelihood ratio of its active features, in nats; any: 1 if a "
        "guarded feature is active",
        group=_GATE,
        shown="log_ratio; any with a threshold by hand, without one of the corpora, or with preset faithful",
    )
    gate_scope: Literal["sequence", "prefix"] = option("sequence", "tokens that share one decision", group=_GATE)
    for_serving: bool = option(
        False,
        "fit for a serving engine: gate_scope prefix, the chat template if the tokenizer has one, and a threshold from "
        "other text joined to max_length tokens; set max_length to the length of requests",
        group=_GATE,
    )
    sticky: bool = option(True, "a row that fired stays fired", group=_GATE, shown="yes")
    min_tokens: int | None = option(
        None,
        "number of tokens up to which shorter rows are filled with quiet tokens",
        group=_GATE,
        shown=_shown("min_tokens"),
        low=1,
    )
    threshold: float | None = option(
        None,
        "threshold of the gate, instead of calibration: a share of hot tokens, or nats with evidence log_ratio",
        group=_GATE,
    )
    threshold_percentile: float | None = option(
        None,
        "the threshold is at least this percentile of the statistic over held-out retain rows",
        group=_GATE,
        shown=_shown("threshold_percentile"),
        low=0,
        high=100,
    )
    margin: float | None = option(
        None,
        "share of the distance to the lower quartile of held-out forget rows by which the threshold is raised, from 0 "
        "to below 1",
        group=_GATE,
        shown=_shown("margin"),
        low=0,
        below=1,
    )

    clamp_unit: Literal["feature", "residual", "absolute"] = option("residual", "unit of the dose", group=_DOSE)
    clamp_scale: float | None = option(
        None,
        "dose in that unit; 0.5 residual: the edit has half the norm of the residual stream",
        group=_DOSE,
        shown=", ".join(f"{scale:g} {unit}" for unit, scale in CLAMP_SCALES.items()),
        low=0,
    )
    clamp_value: float | None = option(
        None, "dose as the absolute value of the paper, such as -500, instead of unit and scale", group=_DOSE
    )
    clamp_mode: Literal["fired", "all"] | None = option(
        None, "features that are clamped at a hot token", group=_DOSE, shown=_shown("clamp_mode")
    )

    action: Literal["clamp", "record", "refuse"] = option(
        "clamp", "action on a row that fired; refuse also answers with the refusal", group=_ACTION
    )
    refusal: str | None = option(None, "answer of action refuse", group=_ACTION)

    chat_template: bool = option(
        False,
        "apply the tokenizer's chat template to each text as a user's turn; use it if the model is deployed so",
        group=_TEXTS,
    )
    text_column: str = option("text", "column or key that holds the text", group="data")
    max_length: int = option(512, "tokens of a row; longer texts are cut into several rows", group=_TEXTS, low=1)

    batch_size: int = option(8, "rows per forward pass", group=_RUN, low=1)
    max_held_out: int = option(
        1024,
        "largest number of documents of each corpus that are held out for threshold and report",
        group=_RUN,
        low=1,
    )
    store_probe: bool = option(
        False,
        "store the token ids of two forget and two retain rows for sae-unlearn check; publishes that much of your text",
        group=_RUN,
    )
    checkpoint_dir: str | None = option(
        None, "folder for checkpoints; after an interruption, the same call resumes from there", group=_RUN
    )
    adapter_name: str | None = option(None, "name of the guardrail on the model", group=_RUN, command_line=False)
    progress: bool = option(True, "show progress bars", group=_RUN, command_line=False)

    def __post_init__(self) -> None:
        check_options(self, GuardrailError)
        if self.features is not None:
            self.features = list(self.features)
        if self.for_serving and self.preset == "faithful":
            raise GuardrailError("for_serving=True: expected no preset, whose counting no engine has. Remove one.")
        if self.clamp_value is not None and self.clamp_scale is not None:
            raise GuardrailError(f"clamp_value={self.clamp_value}, clamp_scale={self.clamp_scale}: expected only one.")
        for name in FIXED.get(self.preset or "", ()):
            value, own = getattr(self, name), PRESETS[self.preset][name]
            if value not in (None, own):
                raise GuardrailError(f"{name}={value!r}: expected {own!r} with preset={self.preset!r}. Remove one.")


def filled(config: GuardrailFitConfig, texts: bool) -> dict[str, Any]:
    """Return the options with the values of the preset in place of None.

    Args:
        config (GuardrailFitConfig): The options.
        texts (bool): True if both corpora are passed; evidence is counted on them.
    """
    found = {each.name: getattr(config, each.name) for each in fields(config)}
    found |= {name: value for name, value in PRESETS[config.preset].items() if found[name] is None}
    if config.for_serving:
        found["gate_scope"] = "prefix"
    if config.statistic is None:
        asks_ratio = config.preset == "faithful" or config.topk is not None or not config.sticky
        by_hand = config.evidence is not None or config.threshold is not None
        found["statistic"] = "ratio" if asks_ratio or by_hand or not texts else "windowed"
    if found["statistic"] == "windowed":
        if config.evidence is not None:
            raise GuardrailError(
                f"evidence={config.evidence!r}: statistic='windowed' weighs features itself. Leave it out."
            )
        found["evidence"] = "windowed"
    elif found["evidence"] is None:
        found["evidence"] = "log_ratio" if texts and config.threshold is None else "any"
    for name, usual in (("paragraphs", False), ("gate_reads", "features")):
        if found[name] != usual and found["statistic"] != "windowed":
            raise GuardrailError(
                f"{name}={found[name]!r}: expected statistic='windowed', got {found['statistic']!r}. Set one of them."
            )
    if config.preset == "faithful" and config.clamp_value is None and config.clamp_scale is None:
        found["clamp_value"] = PUBLISHED_CLAMP_VALUE
    if found["clamp_value"] is not None:
        found |= {"clamp_unit": "absolute", "clamp_scale": -found["clamp_value"]}
    elif config.clamp_scale is None:
        found["clamp_scale"] = CLAMP_SCALES[config.clamp_unit]
    return found
