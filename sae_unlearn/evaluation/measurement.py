"""`Measurement`: a model, and everything a metric needs in addition to its rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.layers import check_module
from sae_unlearn.checks import check_is
from sae_unlearn.evaluation.base_model import has_adapters, without_adapters
from sae_unlearn.guardrail import guard_layers
from sae_unlearn.options.evaluation import MeasurementConfig


@dataclass(kw_only=True)
class Measurement:
    """A model to be measured, and how. Built and checked once; each metric takes it with its rows.

    Attributes:
        model (nn.Module): The measured model, with or without adapters.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
        settings (MeasurementConfig): Batch sizes, lengths, chat template and progress bars.
        base (nn.Module, *optional*): The model without its adapters, if it is another object. If None, it is `model`
            with its adapters disabled.
        notes (list[str]): What a reader of the results has to know. Metrics append to it.
        guarded (bool): True if guardrails are on the model, so that metrics report where they fire.

    Raises:
        UnlearnError: If `model` or `base` is not a module, or `settings` are not of their class.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    settings: MeasurementConfig
    base: nn.Module | None = None
    notes: list[str] = field(default_factory=list)
    guarded: bool = field(init=False)

    def __post_init__(self) -> None:
        check_is(self.settings, MeasurementConfig, "settings")
        for model in (self.model, self.base):
            if model is not None:
                check_module(model)
        self.guarded = bool(guard_layers(self.model))

    @property
    def has_base(self) -> bool:
        """True if there is a base model to compare with."""
        return self.base is not None or has_adapters(self.model)

    @property
    def compares(self) -> bool:
        """True if the divergence from the base can be measured: with `base`, or a `PeftModel` with adapters."""
        # inside `disable_adapter()` there is nothing to compare, and a second one would enable the adapters on leaving
        return self.base is not None or (isinstance(self.model, PeftModel) and has_adapters(self.model))

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """The base model inside the block: `base`, or `model` with its adapters disabled.

        Raises:
            UnlearnError: If there is neither.
        """
        if self.base is not None:
            yield self.base
            return
        with without_adapters(self.model) as model:
            yield model

    def of(self, model: nn.Module, progress: bool = False) -> "Measurement":
        """Return the measurement of another model in the same way, with the same list of notes."""
        settings = replace(self.settings, progress=progress)
        return Measurement(model=model, tokenizer=self.tokenizer, settings=settings, base=self.base, notes=self.notes)
