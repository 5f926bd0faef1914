"""`SAEGuardrailConfig`: everything about a guardrail that is not a tensor."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, ClassVar

from peft import PeftConfig

from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.config_parts.groups import BaseRecord, StatisticKwargs, TokenRules, as_group
from sae_unlearn.guardrail.config_parts.keys import unknown_of_peft
from sae_unlearn.guardrail.config_parts.layout import SEALS
from sae_unlearn.guardrail.config_parts.validation import FORMAT_VERSION, check_config, check_version
from sae_unlearn.guardrail.config_parts.values import as_float32
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.version import __version__


_CHANGES = itertools.count(1)  # `next` is atomic: two threads never get the same number
_TUPLES = ("feature_ids", "gate_feature_ids", "feature_evidence", "refusal_ids")
_GROUPS: dict[str, type[Any]] = {"statistic_kwargs": StatisticKwargs, "tokens": TokenRules, "base_model": BaseRecord}
_GROUPED = {each.name: group for group, kind in _GROUPS.items() for each in fields(kind)}


@dataclass
class SAEGuardrailConfig(PeftConfig):
    """Configuration of an SAE guardrail: its features and layer, its gate, and its action.

    The tensors of a guardrail (encoder columns, biases, thresholds, decoder rows and clamp values of its `N` features)
    are in `adapter_model.safetensors` in the same folder. See `sae_unlearn.guardrail.layer` for the equation.

    Args:
        weights_sha256, config_sha256 (str, *optional*): Digests in a file that PEFT reads. They are accepted and not
            kept.

    Attributes:
        origin (dict or None): Source of a loaded config: `id` (folder or Hub repository), `subfolder`, and `revision`,
            the commit, None for a folder. None if it was not loaded. Not saved.
        refusal_compared (bool): True if a tokenizer has confirmed that `refusal` is the text of `refusal_ids`. Not
            saved.
        version (int): Number of the latest change, which every assignment to a field replaces. Not saved. A running
            gate compares it with that of the config which it checked. Lists become tuples and mappings become groups
            when they are assigned, so they cannot change without an assignment. `calibration`, `sae_source` and
            `base_model.fingerprint` can, and the gate reads none of them.
        target_modules (set or None): Full name of the guarded module, set when it is on a model. PEFT reads it. Not
            saved.

    Raises:
        GuardrailError: From `__post_init__`, if a value is out of range. The message names the field and its value.
    """

    # fields would be saved
    origin: ClassVar[dict[str, str | None] | None] = None
    refusal_compared: ClassVar[bool] = False
    version: ClassVar[int] = 0
    target_modules: ClassVar[set[str] | None] = None

    layer: int = field(default=0, metadata={"help": "0-based decoder layer whose output (resid_post) is guarded."})
    feature_ids: Sequence[int] | None = field(default=None, metadata={"help": "The features' ids in their SAE."})
    statistic: str = field(
        default="ratio",
        metadata={
            "help": "What is compared with `threshold`. 'ratio': hot tokens / tokens so far. "
            "'windowed': signed scores of tokens, their mean judged by its spread or their cumulative sum."
        },
    )
    gate_feature_ids: Sequence[int] | None = field(
        default=None,
        metadata={
            "help": "Further features that only the gate reads, with statistic='windowed'. They are not clamped."
        },
    )
    gate_levels: int = field(
        default=0,
        metadata={
            "help": "Number of levels of a direction of the residual stream that the gate reads in place of "
            "gate_feature_ids, with statistic='windowed'. They are the encoder's last rows, and no SAE's."
        },
    )
    statistic_kwargs: StatisticKwargs = field(default=StatisticKwargs(), metadata={"help": "Its parameters."})
    tokens: TokenRules = field(default=TokenRules(), metadata={"help": "Which tokens count, and which can be hot."})
    feature_evidence: Sequence[float] | None = field(
        default=None,
        metadata={
            "help": "How hot a token is: the sum of these over the features active there. Of each feature, the log of "
            "how much likelier it is active on the topic than on other text, in quarters of a nat, 0.25 to 16. None: a "
            "token is hot, and counts 1, if a guarded feature is active. With statistic='windowed' the weights of the "
            "features and then of gate_feature_ids or the levels, of either sign or 0, in quarters."
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
    clamp_value: float | None = field(
        default=None,
        metadata={"help": "The paper's absolute dose -c, one value for all features (<= 0). None: each has its own."},
    )
    clamp_mode: str = field(
        default="fired",
        metadata={"help": "At a hot token: 'fired' clamps the features active there, 'all' clamps all N."},
    )
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
    base_model: BaseRecord = field(
        default=BaseRecord(), metadata={"help": "The base model: its width, depth and fingerprint."}
    )
    sae_source: dict[str, Any] | None = field(
        default=None, metadata={"help": "The SAE: id, revision, subfolder, architecture, sha256."}
    )
    calibration: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "What fitting saw and measured; `dose` holds unit and scale of the clamp values."},
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "True: empty until weights are loaded. False: random weights, for tests of the plumbing."},
    )
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the artefact's format."})
    sae_unlearn_version: str | None = field(default=None, metadata={"help": "Version that wrote the artefact."})
    # The seal of a file that PEFT reads: accepted, so that PEFT does not warn, and not kept. See `seal`.
    weights_sha256: InitVar[str | None] = None
    config_sha256: InitVar[str | None] = None

    def __post_init__(self, weights_sha256: str | None, config_sha256: str | None) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.task_type: Any = self.task_type or "CAUSAL_LM"
        self.sae_unlearn_version = self.sae_unlearn_version or __version__
        check_config(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _GROUPED:
            group = _GROUPED[name]
            raise GuardrailError(
                f"{name}: expected an assignment to its group. Set `{group}=dataclasses.replace({group}, {name}=...)`."
            )
        if name in _GROUPS:
            value = as_group(name, _GROUPS[name], value)
        super().__setattr__(name, tuple(value) if name in _TUPLES and isinstance(value, list) else value)
        self._count_change()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._count_change()

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():  # by assignment: a version of another process could be assigned again here
            setattr(self, name, value)

    def _count_change(self) -> None:
        self.__dict__["version"] = next(_CHANGES)  # after the change: a reader of the new number reads the new value

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them: lists in place of tuples, mappings in place of groups."""
        stored: dict[str, Any] = super().to_dict()
        return {name: _as_json(value) for name, value in stored.items()}

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse a stored config that this version cannot read in full, before an object is built from it.

        Its seal is dropped, since it belongs to a file and not to the config. So are the fields of another PEFT.

        Raises:
            GuardrailError: If a key is unknown, or the format is of another version.
        """
        kwargs = {key: value for key, value in kwargs.items() if key not in SEALS}
        check_version(kwargs.get("format_version", FORMAT_VERSION))  # first: a newer version may have new keys
        for key in unknown_of_peft(kwargs, {f.name for f in fields(cls)}, _GROUPED):
            del kwargs[key]
        if kwargs.get("auto_mapping") is not None:
            raise GuardrailError(
                "auto_mapping: expected None in a guardrail's config, since it names classes to import. Remove it."
            )
        return kwargs

    @property
    def tau(self) -> float:
        """`threshold`, which must be set.

        Raises:
            GuardrailError: If it is None.
        """
        if self.threshold is None:
            raise GuardrailError("threshold=None: expected a number. Fit the guardrail, or set one.")
        return self.threshold

    @property
    def num_features(self) -> int:
        """Number N of guarded features."""
        return len(self.feature_ids or ())

    @property
    def num_encoded(self) -> int:
        """Number of the encoder's rows: guarded features, those of `gate_feature_ids`, and `gate_levels`."""
        return self.num_features + len(self.gate_feature_ids or ()) + self.gate_levels

    @property
    def width(self) -> int:
        """`base_model.hidden_size`, which must be set.

        Raises:
            GuardrailError: If it is None.
        """
        if self.base_model.hidden_size is None:
            raise GuardrailError(
                "base_model.hidden_size=None: expected an integer. Fit the guardrail, or attach it to a model."
            )
        return self.base_model.hidden_size

    @property
    def hottest(self) -> float:
        """Largest count of a token: 1, or all positive `feature_evidence` and the bias."""
        if self.feature_evidence is None:
            return 1.0
        bias = self.statistic_kwargs.bias if self.statistic == "windowed" else 0.0
        return bias + sum(value for value in self.feature_evidence if value > 0)

    @property
    def threshold_bounds(self) -> tuple[float, float]:
        """Half-open interval [low, high) of the thresholds that some texts exceed and others do not."""
        return (0.0, math.inf) if self.statistic == "windowed" else (0.0, self.hottest)

    @property
    def never_fires(self) -> bool:
        """True if no statistic exceeds `threshold`, compared in float32 as in the gate."""
        return as_float32(self.tau) >= self.threshold_bounds[1]


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
