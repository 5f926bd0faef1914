"""`SAEGuardrailConfig`: everything about a guardrail that is not a tensor."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, ClassVar

from peft import PeftConfig

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_keys import unknown_of_peft
from sae_unlearn.guardrail.config_validation import FORMAT_VERSION, as_float32, check_config, check_version
from sae_unlearn.guardrail.layout import SEALS
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.version import __version__


_CHANGES = itertools.count(1)  # `next` of it is atomic: two threads never get one number
_TUPLES = ("feature_ids", "feature_evidence", "refusal_ids", "special_token_ids", "message_boundary_ids")


@dataclass
class SAEGuardrailConfig(PeftConfig):
    """Configuration of an SAE guardrail: which features of which layer, when the gate fires, and what happens then.

    The tensors of a guardrail (encoder columns, biases, thresholds, decoder rows and clamp values of its `N` features)
    are in `adapter_model.safetensors` beside it; see `sae_unlearn.guardrail.layer` for the equation.

    Attributes:
        origin: where it was loaded from: `id` (folder or Hub repository), `subfolder`, and `revision`, the commit, None
            for a folder. None if it was not loaded. Not saved.
        refusal_compared: True if a tokenizer has shown that `refusal` is the text of `refusal_ids`. Not saved.
        version: number of the latest change, another one after every assignment to a field. Not saved. A running gate
            compares it with that of the config which it checked. Lists become tuples when they are assigned, so they
            cannot change without an assignment. `calibration`, `sae_source`, `base_fingerprint` and `target_modules`
            can, and the gate reads none of them.

    Raises:
        GuardrailError: from `__post_init__`, naming the field, its value and what it may be.
    """

    # fields would be saved
    origin: ClassVar[dict[str, str | None] | None] = None
    refusal_compared: ClassVar[bool] = False
    version: ClassVar[int] = 0

    layer: int = field(default=0, metadata={"help": "0-based decoder layer whose output (resid_post) is guarded."})
    num_features: int = field(default=0, metadata={"help": "Number N of guarded features. 0: taken from feature_ids."})
    feature_ids: Sequence[int] | None = field(default=None, metadata={"help": "The features' ids in their SAE."})
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
    feature_evidence: Sequence[float] | None = field(
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
    refusal_ids: Sequence[int] | None = field(
        default=None, metadata={"help": "Its token ids; the last one ends the sequence."}
    )
    counting: str = field(
        default="content",
        metadata={
            "help": "'content': tokens the attention mask keeps and that are not special. 'columns': every column of "
            "the batch counts, padding included, and column 0 is never hot (the published counting)."
        },
    )
    special_token_ids: Sequence[int] | None = field(
        default=None, metadata={"help": "Tokens that are neither hot nor counted nor clamped (BOS, EOS, PAD, ...)."}
    )
    message_boundary_ids: Sequence[int] | None = field(
        default=None,
        metadata={
            "help": "Tokens that a chat template puts between messages. 'ratio' is then taken of each message, too, "
            "and its largest value counts."
        },
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the residual stream."})
    num_layers: int | None = field(default=None, metadata={"help": "Number of decoder layers of the base model."})
    base_fingerprint: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "A few weights of the base model, to recognize it: of its embedding, norms and matrices."},
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
        check_config(self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, tuple(value) if name in _TUPLES and isinstance(value, list) else value)
        self._count_change()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._count_change()

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():  # by assignments: a version of another process could be given again here
            setattr(self, name, value)

    def _count_change(self) -> None:
        self.__dict__["version"] = next(_CHANGES)  # after the change: who reads the new number reads the new value

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them: lists in place of tuples."""
        stored: dict[str, Any] = super().to_dict()
        return stored | {name: list(stored[name]) for name in _TUPLES if isinstance(stored[name], tuple)}

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse a stored config that this version cannot read in full, before anything is built from it. Its seal is
        left out: it is of a file, and not of what is made of it. So are the fields of another PEFT."""
        kwargs = {key: value for key, value in kwargs.items() if key not in SEALS}
        check_version(kwargs.get("format_version", FORMAT_VERSION))  # first: a newer version may well have new keys
        for key in unknown_of_peft(kwargs, {f.name for f in fields(cls)}):
            del kwargs[key]
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
        return as_float32(self.tau) >= self.threshold_bounds[1]
