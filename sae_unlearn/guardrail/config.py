"""`SAEGuardrailConfig`: everything about a guardrail that is not a tensor."""

import math
import re
import struct
from collections import Counter
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, ClassVar

from peft import PeftConfig

from sae_unlearn.guardrail.errors import GuardrailError
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.seal import SEALS
from sae_unlearn.version import __version__


FORMAT_VERSION = 1

# Counts are held in float32, which is exact up to here.
LARGEST_COUNT = 2**24
LARGEST_ID = 2**31 - 1
LONGEST_REFUSAL = 512
# Features times width: 1 GiB of weights, some thousand times what a topic takes.
LARGEST_SLICE = 2**27

# Log-likelihood ratios in quarters of a nat, so that sums of them are exact in float32, too.
EVIDENCE_STEP, LARGEST_EVIDENCE = 0.25, 16.0

# Statistics that can be taken of each message as well, and those that look back over a window.
BY_MESSAGE = ("ratio", "ratio_or_window")
WINDOWED = ("window", "ratio_or_window")

CHOICES = {
    "statistic": ("ratio", "window", "cusum", "ratio_or_window"),
    "evidence": ("any", "log_ratio"),
    "gate_scope": ("sequence", "prefix"),
    "clamp_mode": ("fired", "all"),
    "clamp_unit": ("feature", "residual", "absolute"),
    "action": ("clamp", "record", "refuse"),
    "counting": ("content", "columns"),
}


@dataclass
class SAEGuardrailConfig(PeftConfig):
    """Configuration of an SAE guardrail: which features of which layer, when the gate fires, and what happens then.

    The tensors of a guardrail (encoder columns, biases, thresholds, decoder rows and clamp values of its `N` features)
    are in `adapter_model.safetensors` beside it; see `sae_unlearn.guardrail.layer` for the equation.

    Attributes:
        origin: where it was loaded from: `id` (folder or Hub repository), `subfolder`, and `revision`, the commit, None
            for a folder. None if it was not loaded. Not saved.

    Raises:
        GuardrailError: from `__post_init__`, naming the field, its value and what it may be.
    """

    origin: ClassVar[dict[str, str | None] | None] = None  # a field would be saved

    layer: int = field(default=0, metadata={"help": "0-based decoder layer whose output (resid_post) is guarded."})
    num_features: int = field(default=0, metadata={"help": "Number N of guarded features. 0: taken from feature_ids."})
    feature_ids: list[int] | None = field(default=None, metadata={"help": "The features' ids in their SAE."})
    statistic: str = field(
        default="ratio",
        metadata={
            "help": "What is compared with `threshold`. 'ratio': hot tokens / tokens so far. 'window': the same over "
            "the last `window` tokens, its largest value so far. 'cusum': cumulative sum of (hot - drift), floored at "
            "0, its largest value so far. 'ratio_or_window': the larger of ratio and `window_weight` * window."
        },
    )
    evidence: str = field(
        default="any",
        metadata={
            "help": "How hot a token is. 'any': 1 if a guarded feature is active. 'log_ratio': the sum of "
            "`feature_evidence` over the features active there."
        },
    )
    feature_evidence: list[float] | None = field(
        default=None,
        metadata={
            "help": "Of each feature, the log of how much likelier it is active on the topic than on other text, in "
            "quarters of a nat, 0.25 to 16."
        },
    )
    outlier_norm: float | None = field(
        default=None,
        metadata={
            "help": "A token whose residual stream has a larger norm is never hot: many features are active there on "
            "any text. None: no token is left out."
        },
    )
    gate_scope: str = field(
        default="sequence",
        metadata={
            "help": "'sequence': one decision holds for all tokens of a forward pass, the current one included. "
            "'prefix': token by token, each judged by the tokens up to it."
        },
    )
    sticky: bool = field(default=True, metadata={"help": "Once a sequence fired it stays fired."})
    threshold: float | None = field(default=None, metadata={"help": "tau: fires iff statistic > threshold."})
    window: int = field(default=64, metadata={"help": "Tokens the 'window' statistic looks back."})
    window_weight: float = field(
        default=0.35, metadata={"help": "What the window counts beside the whole in 'ratio_or_window', up to 1."}
    )
    drift: float = field(default=0.5, metadata={"help": "Hot rate that leaves the 'cusum' statistic unchanged."})
    min_tokens: int = field(
        default=1,
        metadata={"help": "Shorter sequences are counted as if quiet tokens filled them up to this many."},
    )
    clamp_value: float | None = field(
        default=None, metadata={"help": "The paper's absolute dose -c, one value for all features (<= 0)."}
    )
    clamp_mode: str = field(
        default="fired",
        metadata={"help": "At a hot token: 'fired' clamps the features active there, 'all' clamps all N."},
    )
    clamp_unit: str = field(
        default="feature",
        metadata={
            "help": "Unit of `clamp_scale`. 'feature': each feature's mean active value on forget text. 'residual': "
            "the edit's typical norm over the median residual norm. 'absolute': the SAE's own units."
        },
    )
    clamp_scale: float | None = field(default=None, metadata={"help": "The dose in `clamp_unit`s (>= 0)."})
    action: str = field(
        default="clamp",
        metadata={
            "help": "What happens to a sequence that fired. 'clamp' edits it, 'record' only reports, 'refuse' edits it "
            "and answers with `refusal_ids`."
        },
    )
    refusal: str | None = field(default=None, metadata={"help": "The message of action='refuse', for people."})
    refusal_ids: list[int] | None = field(
        default=None, metadata={"help": "Its token ids; the last one ends the sequence."}
    )
    counting: str = field(
        default="content",
        metadata={
            "help": "'content': tokens the attention mask keeps and that are not special. 'columns': every column of "
            "the batch counts, padding included, and column 0 is never hot (the published counting)."
        },
    )
    special_token_ids: list[int] | None = field(
        default=None, metadata={"help": "Tokens that are neither hot nor counted nor clamped (BOS, EOS, PAD, ...)."}
    )
    message_boundary_ids: list[int] | None = field(
        default=None,
        metadata={
            "help": "Tokens that a chat template puts between messages. 'ratio' is then taken of each message, too, "
            "and its largest value counts."
        },
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the residual stream."})
    num_layers: int | None = field(default=None, metadata={"help": "Number of decoder layers of the base model."})
    base_fingerprint: dict[str, Any] | None = field(
        default=None, metadata={"help": "A few weights of the base model, to know it again."}
    )
    sae_source: dict[str, Any] | None = field(
        default=None, metadata={"help": "The SAE: id, revision, subfolder, architecture, sha256."}
    )
    calibration: dict[str, Any] | None = field(default=None, metadata={"help": "What fitting saw and measured."})
    init_weights: bool = field(
        default=True,
        metadata={"help": "True: empty until weights are loaded. False: random weights, for tests of the plumbing."},
    )
    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Full name of the guarded module; derived from `layer`."}
    )
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the artefact's format."})
    sae_unlearn_version: str | None = field(default=None, metadata={"help": "Version that wrote the artefact."})
    # The seal of a file that PEFT reads by itself: taken, so that it does not warn, and not kept. See `seal`.
    weights_sha256: InitVar[str | None] = None
    config_sha256: InitVar[str | None] = None

    def __post_init__(self, weights_sha256: str | None, config_sha256: str | None) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.task_type: Any = self.task_type or "CAUSAL_LM"
        self.sae_unlearn_version = self.sae_unlearn_version or __version__
        _check_version(self.format_version)
        self._check_names()
        self._check_evidence()
        self.check_numbers()
        self._check_ids()
        self._check_strings()

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse a stored config that this version cannot read in full, before anything is built from it. Its seal is
        left out: it is of a file, and not of what is made of it."""
        kwargs = {key: value for key, value in kwargs.items() if key not in SEALS}
        _check_version(kwargs.get("format_version", FORMAT_VERSION))  # first: a newer version may well have new keys
        unknown = sorted(set(kwargs) - {f.name for f in fields(cls)})
        if unknown:
            raise GuardrailError(f"Unknown key(s) in the guardrail's config: {unknown}. Install a newer sae_unlearn.")
        if kwargs.get("auto_mapping") is not None:
            raise GuardrailError("`auto_mapping` names classes to import; a guardrail's config may not hold it.")
        return kwargs

    @property
    def tau(self) -> float:
        """`threshold`, where there must be one.

        Raises:
            GuardrailError: it is None.
        """
        if self.threshold is None:
            raise GuardrailError("The guardrail has no threshold; fit it, or give one.")
        return self.threshold

    @property
    def width(self) -> int:
        """`hidden_size`, where it must be known.

        Raises:
            GuardrailError: it is None.
        """
        if self.hidden_size is None:
            raise GuardrailError("The guardrail has no hidden size; it is known once it is fitted or on a model.")
        return self.hidden_size

    @property
    def hottest(self) -> float:
        """What the hottest token counts: 1, or all of `feature_evidence`; infinite where that is not known yet."""
        if self.evidence == "any":
            return 1.0
        return math.inf if self.feature_evidence is None else sum(self.feature_evidence)

    @property
    def threshold_bounds(self) -> tuple[float, float]:
        """Half-open interval [low, high) in which a threshold can ever be crossed and is not always crossed."""
        return (0.0, math.inf) if self.statistic == "cusum" else (0.0, self.hottest)

    @property
    def never_fires(self) -> bool:
        """Whether no statistic exceeds `threshold`, which the gate compares in float32."""
        return _float32(self.tau) >= self.threshold_bounds[1]

    def _check_names(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise GuardrailError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}.")
        for name in ("sticky", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise GuardrailError(f"{name}={getattr(self, name)!r} must be True or False.")
        if str(getattr(self.task_type, "value", self.task_type)) != "CAUSAL_LM":
            raise GuardrailError(f"task_type={self.task_type!r}: a guardrail works on 'CAUSAL_LM' models only.")

    def check_numbers(self) -> None:
        """Raise unless every number is in its range."""
        at_least = {"layer": 0, "num_features": 0, "window": 1, "min_tokens": 1}
        for name, low in at_least.items():
            _check_integer(name, getattr(self, name), low, LARGEST_COUNT)
        for name in ("hidden_size", "num_layers"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1, LARGEST_COUNT)
        if self.num_layers is not None and self.layer >= self.num_layers:
            raise GuardrailError(f"layer={self.layer} is not below num_layers={self.num_layers}; layers count from 0.")
        if self.window < self.min_tokens and self.statistic in WINDOWED:
            raise GuardrailError(f"window={self.window} is below min_tokens={self.min_tokens}; widen the window.")
        if self.threshold is not None:
            lowest, highest = self.threshold_bounds
            check_real("threshold", self.threshold)
            if self.threshold < lowest or self.never_fires:
                raise GuardrailError(
                    f"threshold={self.threshold} is outside [{lowest}, {highest}), the range of statistic="
                    f"{self.statistic!r}: the gate would {'always' if self.threshold < lowest else 'never'} fire."
                )
        self.check_outlier_norm()
        check_real("window_weight", self.window_weight)
        if not 0 < self.window_weight <= 1:
            raise GuardrailError(f"window_weight={self.window_weight} must be above 0 and at most 1.")
        check_real("drift", self.drift)
        # a weak feature's evidence can lie below the drift that the other statistics do not use
        highest = self.hottest if self.evidence == "any" or self.statistic == "cusum" else math.inf
        if not 0 < self.drift < highest:
            raise GuardrailError(
                f"drift={self.drift} must lie between 0 and {highest:g}, between a quiet and a hot text's rate."
            )
        if self.clamp_value is not None:
            check_real("clamp_value", self.clamp_value)
            if self.clamp_value > 0:
                raise GuardrailError(
                    f"clamp_value={self.clamp_value} is positive and would amplify the topic; the dose is -c, for "
                    f"example {-self.clamp_value}."
                )
        if self.clamp_scale is not None:
            check_real("clamp_scale", self.clamp_scale)
            if self.clamp_scale < 0:
                raise GuardrailError(
                    f"clamp_scale={self.clamp_scale} is negative and would amplify the topic; features are clamped to "
                    f"minus this many units, so give {-self.clamp_scale}."
                )

    def _check_ids(self) -> None:
        if self.feature_ids is not None:
            if not isinstance(self.feature_ids, (list, tuple)) or not self.feature_ids:
                raise GuardrailError(f"feature_ids={self.feature_ids!r} must be a non-empty list of integers.")
            self.feature_ids = [_check_integer("feature_ids", i, 0, LARGEST_ID) for i in self.feature_ids]
            if len(set(self.feature_ids)) != len(self.feature_ids):
                repeated = sorted(i for i, count in Counter(self.feature_ids).items() if count > 1)
                raise GuardrailError(f"feature_ids holds {repeated[:8]} more than once; name each feature once.")
            if self.num_features not in (0, len(self.feature_ids)):
                raise GuardrailError(
                    f"num_features={self.num_features} but feature_ids names {len(self.feature_ids)}; give one of them."
                )
            self.num_features = len(self.feature_ids)
            d_sae = (self.sae_source or {}).get("d_sae") if isinstance(self.sae_source, dict) else None
            if isinstance(d_sae, int) and max(self.feature_ids) >= d_sae:
                raise GuardrailError(
                    f"feature_ids holds {max(self.feature_ids)}, but the SAE in `sae_source` has d_sae={d_sae} "
                    f"features, 0 to {d_sae - 1}."
                )
        if self.num_features * (self.hidden_size or 1) > LARGEST_SLICE:
            raise GuardrailError(
                f"num_features={self.num_features} of width {self.hidden_size} are more than {LARGEST_SLICE} weights, "
                "which no guardrail has."
            )
        self.special_token_ids = _token_ids("special_token_ids", self.special_token_ids)
        self.message_boundary_ids = _token_ids("message_boundary_ids", self.message_boundary_ids)
        self._check_messages()
        self.check_refusal()

    def _check_evidence(self) -> None:
        values = self.feature_evidence
        if values is None:
            return
        if self.evidence == "any":
            raise GuardrailError("feature_evidence goes with evidence='log_ratio'; leave it out.")
        if not isinstance(values, (list, tuple)) or not values:
            raise GuardrailError(f"feature_evidence={values!r} must be a list of numbers, one for each feature.")
        for value in values:
            check_real("feature_evidence", value)
            if not EVIDENCE_STEP <= value <= LARGEST_EVIDENCE or value % EVIDENCE_STEP:
                raise GuardrailError(
                    f"feature_evidence holds {value}; it is in steps of {EVIDENCE_STEP} up to {LARGEST_EVIDENCE:g}."
                )
        self.feature_evidence = [float(value) for value in values]
        number = len(self.feature_ids or []) or self.num_features
        if number != len(values):
            raise GuardrailError(f"feature_evidence holds {len(values)} numbers for {number} features.")

    def check_outlier_norm(self) -> None:
        """Raise unless a token of usual norm can be hot."""
        if self.outlier_norm is None:
            return
        check_real("outlier_norm", self.outlier_norm)
        usual = self.calibration.get("residual_norm_median") if isinstance(self.calibration, dict) else None
        lowest = usual if isinstance(usual, (int, float)) else 0.0
        if not self.outlier_norm > max(lowest, 0.0):
            raise GuardrailError(
                f"outlier_norm={self.outlier_norm} must be above {lowest}, the usual norm of a token; or nothing would "
                "ever be hot."
            )

    def _check_messages(self) -> None:
        if not self.message_boundary_ids:
            return
        needed = {"statistic": BY_MESSAGE, "counting": ("content",), "sticky": (True,)}
        wrong = [f"{name}={getattr(self, name)!r}" for name, fit in needed.items() if getattr(self, name) not in fit]
        if wrong:
            raise GuardrailError(
                f"message_boundary_ids goes with statistic='ratio' or 'ratio_or_window', counting='content' and "
                f"sticky=True, and not with {', '.join(wrong)}; set message_boundary_ids=None."
            )

    def check_refusal(self) -> None:
        """Raise unless the fields of action="refuse" fit together."""
        if self.refusal_ids is not None:
            if not isinstance(self.refusal_ids, (list, tuple)) or not 0 < len(self.refusal_ids) <= LONGEST_REFUSAL:
                raise GuardrailError(f"refusal_ids must be a list of 1 to {LONGEST_REFUSAL} token ids.")
            self.refusal_ids = [_check_integer("refusal_ids", i, 0, LARGEST_COUNT) for i in self.refusal_ids]
        if self.action == "refuse" and not self.refusal_ids:
            raise GuardrailError("action='refuse' needs `refusal_ids`, the message that is answered; see `set_action`.")
        if self.action == "refuse" and not self.sticky:
            raise GuardrailError("action='refuse' needs sticky=True; else a refusal may end in the middle.")

    def _check_strings(self) -> None:
        if isinstance(self.target_modules, str):
            self.target_modules = {self.target_modules}
        if self.target_modules is not None:
            self.target_modules = set(self.target_modules)
            for name in self.target_modules:
                if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
                    raise GuardrailError(f"target_modules holds {name!r}, which is no module name; leave it out.")
        for name in ("base_model_name_or_path", "revision", "sae_unlearn_version", "refusal"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise GuardrailError(f"{name}={value!r} must be a text or None.")
        for name in ("sae_source", "calibration", "base_fingerprint"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), dict):
                raise GuardrailError(f"{name}={getattr(self, name)!r} must be a mapping.")
        if self.auto_mapping is not None:
            raise GuardrailError("`auto_mapping` names classes to import; a guardrail's config may not hold it.")


def _check_version(version: Any) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise GuardrailError(
            f"format_version={version!r}: this sae_unlearn ({__version__}) reads versions 1 to {FORMAT_VERSION}; "
            "install a newer sae_unlearn."
        )


def _token_ids(name: str, ids: Any) -> list[int] | None:
    """Token ids, each once and in order."""
    if ids is None:
        return None
    if not isinstance(ids, (list, tuple, set)):
        raise GuardrailError(f"{name}={ids!r} must be a list of token ids.")
    return sorted({_check_integer(name, i, 0, LARGEST_ID) for i in ids})


def _check_integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise GuardrailError(f"{name}: {value!r} must be an integer >= {low}.")
    if value > high:
        raise GuardrailError(f"{name} is beyond {high}; it must be an integer from {low} to {high}.")
    return value


def check_real(name: str, value: Any) -> None:
    """Raise GuardrailError unless `value` is a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(_float32(value)):
        raise GuardrailError(f"{name}={value!r} must be a finite number.")


def _float32(value: float) -> float:
    """`value` as the gate holds it; infinite where that cannot."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except (OverflowError, struct.error):  # the latter for integers that no float holds
        return math.inf
